"""Penalties on what a solve costs: the solver's own estimates, on the autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Output, Regularizer, Solved
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.mesh import SharedMesh
from ndeflow.numerics.solution import Solution


@final
class GlobalError(Regularizer):
    """The local error summed over the accepted steps of a solve (ERNODE, of an SDE ERNSDE).

    R = sum_j E_j |h_j|, with E_j the tolerance-scaled RMS local error of step j over batch and state, and h_j a
    plain number; where rows step apart, the mean of each row's own R. Pal, Ma, Shah, Rackauckas 2021, "Opening the
    Blackbox", section 3. A controller holds E_j near a constant, so the value does not fall when the cost falls:
    judge by evaluations, never by the penalty.

    aggregate: "sum" as the paper's formula, "mean" over steps as its published experiments, or "max".
    """

    def __init__(self, weight: float | Decay = 1.0, *, aggregate: Literal["sum", "mean", "max"] = "sum") -> None:
        super().__init__(weight)
        if aggregate not in ("sum", "mean", "max"):
            raise ValueError(f"expected aggregate sum, mean or max, got {aggregate!r}")
        self.aggregate = aggregate

    def check(self, model: Any) -> None:
        adjoint = type(model.adjoint)
        if not adjoint.differentiable_stats:
            raise ValueError(
                f"expected an adjoint that differentiates the solver's error estimate, got {adjoint.__name__}; "
                "use adjoint=direct or adjoint=checkpointed with GlobalError"
            )
        if model.solver is not None and not isinstance(model.solver, Adaptive):
            raise ValueError(
                f"expected a solver that estimates its local error, got {model.solver}; use an adaptive one "
                "(solver=dopri5, tsit5, bosh3 or heun, of an SDE adaptive_stochastic) with GlobalError"
            )

    def penalty(self, model: Any, output: Output, batch: Any, solved: Sequence[Solved]) -> Tensor:
        total, *others = [self._of(one.solution) for one in solved]
        return sum(others, start=total)

    def _of(self, solution: Solution) -> Tensor:
        stats, mesh = solution.stats, solution.stats.mesh
        if stats.error is None:
            raise ValueError("expected a solve with local error estimates, got none; use an adaptive solver")
        if not isinstance(mesh, SharedMesh):
            sizes, counts = stats.steps.abs().to(stats.error), stats.accepted.clamp(min=1)
            return self._aggregated(stats.error * sizes, counts).mean()
        error = torch.linalg.vector_norm(stats.error, dim=0)  # its gradient at 0 is 0
        sizes = mesh.sizes(error) / len(stats.error) ** 0.5
        if self.aggregate == "sum":
            return error.dot(sizes)
        return self._aggregated(error * sizes, max(len(error), 1))

    def _aggregated(self, terms: Tensor, counts: Tensor | int) -> Tensor:
        """Of terms (N,) or (R, N), `counts` of each row: 0-dim or (R,); 0 where there are none."""
        if self.aggregate == "max" and terms.shape[-1]:
            return terms.amax(dim=-1)
        total = terms.sum(dim=-1)
        return total / counts if self.aggregate == "mean" else total
