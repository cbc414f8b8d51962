"""Penalties on what a solve costs: the solver's own estimates at every step, on the autograd graph."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import numpy
from torch import Tensor

from ndeflow.contracts import Decay, Solved
from ndeflow.numerics.mesh import SharedMesh
from ndeflow.regularizers.estimates import ErrorEstimate, Estimate, StiffnessEstimate
from ndeflow.regularizers.solves import SolvePenalty

Aggregate = Literal["sum", "mean", "max"]


class StepCost(SolvePenalty):
    """The estimates of a solver over its accepted steps, as one number.

    Steps that rows take together have one term each, from the root mean square over the batch, as the controller judges
    them; where rows step apart, each has its own terms, and the penalty is the mean over rows. Step sizes are plain
    numbers. Several solves of a training step are added up. aggregate: "sum", "mean" or "max" over steps.
    """

    estimate: ClassVar[Estimate]

    def __init__(self, weight: float | Decay, aggregate: Aggregate) -> None:
        super().__init__(weight)
        if aggregate not in ("sum", "mean", "max"):
            raise ValueError(f"expected aggregate sum, mean or max, got {aggregate!r}")
        self.aggregate = aggregate

    def check(self, model: Any) -> None:
        adjoint, name = type(model.adjoint), type(self).__name__
        if not adjoint.differentiable_stats:
            raise ValueError(
                f"expected an adjoint that differentiates the solver's estimates, got {adjoint.__name__}; "
                f"use adjoint=direct or adjoint=checkpointed with {name}, or its local form with any adjoint"
            )
        if model.solver is not None:
            self.estimate.refuse(model.solver, name)

    def of(self, one: Solved) -> Tensor:
        solution, factor = one.solution, self.estimate.factor
        self.estimate.refuse(solution.solver, type(self).__name__)
        stats, mesh = solution.stats, solution.stats.mesh
        if not isinstance(mesh, SharedMesh):
            estimate = self.estimate.of(stats.error, stats.stiffness)
            sizes, counts = stats.steps.abs().to(estimate), stats.accepted.clamp(min=1)
            return self._rows(estimate * factor(sizes, solution.solver), counts).mean()
        norms, sizes = self.estimate.norms(stats), mesh.sizes()
        count = max(len(sizes), 1) if self.aggregate == "mean" else 1
        scale = 1 / (count * stats.counts.rows**0.5)
        factors = [scale * factor(size, solution.solver) for size in sizes]
        if self.aggregate == "max" and sizes:
            terms = [norm * each for norm, each in zip(norms.detach().tolist(), factors, strict=True)]
            largest = int(numpy.argmax(terms))  # which is one that is not a number, if there is such
            return norms[largest] * factors[largest]
        return norms.dot(norms.new_tensor(factors))

    def _rows(self, terms: Tensor, counts: Tensor) -> Tensor:
        """Of terms (B, N), `counts` of each row: (B,); 0 where there are none."""
        if self.aggregate == "max" and terms.shape[-1]:
            return terms.amax(dim=-1)
        total = terms.sum(dim=-1)
        return total / counts if self.aggregate == "mean" else total


@final
class GlobalError(StepCost):
    """The local error summed over the accepted steps of a solve (ERNODE, of an SDE ERNSDE).

    R = sum_j E_j |h_j|, with E_j the tolerance-scaled RMS local error of step j and h_j its size; see `StepCost`. Pal,
    Ma, Shah, Rackauckas 2021, "Opening the Blackbox", section 3. A controller holds E_j near a constant, so the value
    does not fall when the cost falls: judge by evaluations, never by the penalty.

    aggregate: "sum" as the paper's formula, "mean" over steps as its published experiments, or "max".
    """

    estimate: ClassVar[Estimate] = ErrorEstimate()

    def __init__(self, weight: float | Decay = 1.0, *, aggregate: Aggregate = "sum") -> None:
        super().__init__(weight, aggregate)


@final
class Stiffness(StepCost):
    """The stiffness of the accepted steps of a solve (SRNODE, of an SDE SRNSDE).

    R = max_j S_j / s, with S_j = |k_s - k_{s-1}| / |g_s - g_{s-1}| from the two stages at the end of step j (Hairer &
    Wanner II, p. 22), and s the method's stability interval on the negative real axis, 3.3066 for dopri5 and 3.5068 for
    tsit5; step sizes do not enter; see `StepCost`. Pal, Ma, Shah, Rackauckas 2021, section 3, where each norm is taken
    over the batch: here each row has its S_j.

    Of an SDE S_j is the slope of the drift along the step, see `AdaptiveStochastic`, and s that interval for the mean,
    2 for heun and midpoint, 4 where steps are doubled. The published SRNSDE has the last two drift stages of SOSRI2 in
    the quotient, 10.6 for s, and the mean over steps: a weight of 1 there is one of 0.19 here, with "mean" and heun.

    aggregate: "max" as the published experiments, "sum" as the paper's formula, or "mean".
    """

    estimate: ClassVar[Estimate] = StiffnessEstimate()

    def __init__(self, weight: float | Decay = 0.1, *, aggregate: Aggregate = "max") -> None:
        super().__init__(weight, aggregate)
