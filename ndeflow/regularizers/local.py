"""Penalties on what one step costs, from a random time on: with any adjoint, for one more step."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Problem, Solved
from ndeflow.numerics import single
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.field import path_of
from ndeflow.numerics.mesh import SharedMesh
from ndeflow.numerics.replay import Ambient
from ndeflow.numerics.solution import Solution
from ndeflow.numerics.trace import Trail
from ndeflow.regularizers.estimates import ErrorEstimate, Estimate, StiffnessEstimate
from ndeflow.regularizers.solves import SolvePenalty

Sampling = Literal["unbiased", "biased"]
Start = tuple[Tensor, Tensor, Tensor, Tensor]
"""Where the steps of rows begin: t, (B,), y, (B, *state), the sizes h and the weights, (B,), all constants."""

SLACK = 1e-6  # of a step


class LocalCost(SolvePenalty):
    """An estimate of one more step, from a state y* on the solution at a random time t*.

    The step has the size h of the accepted one that covers t*, and y* is where a step of the method from the start of
    that one to t* comes to; t*, y* and h are constants, the first stage is not. From a t* so late that the step would
    pass the end of the solve, a knot of its control path, or of an SDE a save time, the accepted step itself is taken.
    No gradient of the solve is needed, and so any adjoint serves; the solve itself is as it were without. Pal, Edelman,
    Rackauckas 2023, "Locally regularized neural differential equations", section 3; there the first stage is a constant
    too, whose gradient is not that of the error.

    sampling: "unbiased", t* uniform in time; "biased", at the start of an accepted step, each as likely as the others:
    denser where the dynamics are hard. Both are weighted to have the mean of the sum over all steps. All rows have one
    t*, where they step together in the same step, which counts with its mean size; apart, as a fraction of their times,
    and with "biased" each its own. Several solves are added up. A step of an SDE has noise of its own; its y* between
    two steps is interpolated linearly, and so only with shared stepping.
    """

    estimate: ClassVar[Estimate]

    def __init__(self, weight: float | Decay, sampling: Sampling) -> None:
        super().__init__(weight)
        if sampling not in ("unbiased", "biased"):
            raise ValueError(f"expected sampling unbiased or biased, got {sampling!r}")
        self.sampling = sampling

    def check(self, model: Any) -> None:
        if model.solver is not None:
            self._check(model.solver)

    def prepare(self, problem: Problem) -> Problem:
        return replace(problem, keep_mesh=True)

    def of(self, one: Solved) -> Tensor:
        solution, solver = one.solution, one.solution.solver
        self._check(solver)
        assert isinstance(solver, Adaptive)
        if not solver.apart:
            return self._together(solution)
        return self._apart(solution, solver) if solution.stats.steps.shape[1] else solution.ys.sum() * 0.0

    def _check(self, solver: Any) -> None:
        self.estimate.refuse(solver, type(self).__name__)
        if isinstance(solver, AdaptiveStochastic) and solver.apart and self.sampling == "unbiased":
            raise ValueError(
                "expected sampling=biased where the rows of an SDE step apart, whose states are known at the ends of "
                "their steps, got unbiased; use sampling=biased, or batching=shared"
            )

    def _together(self, solution: Solution) -> Tensor:
        """Of rows that step together: the root mean square."""
        mesh, trail = solution.stats.mesh, solution.stats.trail
        assert isinstance(mesh, SharedMesh) and trail is not None
        if not trail.nodes:
            return solution.ys.sum() * 0.0
        number, fraction, weight = self._drawn(mesh.sizes(), trail)
        norm = self.estimate.of(*single.norms(solution, number, fraction, _noise(solution)))
        return norm * (self.estimate.factor(weight, solution.solver) / solution.stats.counts.rows**0.5)

    def _drawn(self, sizes: list[float], trail: Trail) -> tuple[int, float, float]:
        """A step, the fraction of it where the one more begins, and a weight: N h, or t1 - t0."""
        u, ends, last = torch.rand((), dtype=torch.float64).item(), [*accumulate(sizes)], len(sizes) - 1
        if self.sampling == "biased":
            number = min(int(u * len(sizes)), last)
            return number, 0.0, len(sizes) * sizes[number]
        number = min(bisect_right(ends, u * ends[-1]), last)
        fraction = max(0.0, 1 - (ends[number] - u * ends[-1]) / sizes[number])
        node = trail.nodes[number]
        over = node.theta + (1 + fraction) * node.dtheta > 1 + SLACK * node.dtheta
        return number, 0.0 if over else fraction, ends[-1]

    def _apart(self, solution: Solution, solver: Adaptive) -> Tensor:
        """Of rows that step apart: the mean."""
        t, y, h, weight = self._biased(solution) if self.sampling == "biased" else self._unbiased(solution, solver)
        t, h = (x.view(-1, *[1] * (y.dim() - 1)) for x in (t, h))
        step = solver.step(solution.problem, t, y, h, noise=_noise(solution))
        estimate = self.estimate.of(step.ratio, step.stiffness)
        return (estimate * self.estimate.factor(weight.to(estimate), solver)).mean()

    def _biased(self, solution: Solution) -> Start:
        """At an accepted step, one of N: weight N h."""
        counts = solution.stats.accepted
        j = (torch.rand(len(counts), device=counts.device) * counts).long().clamp(max=solution.stats.steps.shape[1] - 1)
        t, y, h = _accepted(solution, j)
        return t, y, h, counts.clamp(min=1) * h.abs()

    def _unbiased(self, solution: Solution, solver: Adaptive) -> Start:
        """At a time of the same fraction in all rows, with the size of the step that covers it: weight t1 - t0."""
        times, steps, ts = solution.stats.times, solution.stats.steps, solution.problem.ts.detach()
        first, last = (ts[..., place].to(times).expand(len(times)) for place in (0, -1))
        t = first + torch.rand((), dtype=times.dtype, device=times.device) * (last - first)
        moves = steps != 0
        fraction = (t.unsqueeze(1) - times) / torch.where(moves, steps, 1.0)
        j = (moves & (fraction >= 0) & (fraction <= 1 + SLACK)).long().argmax(dim=1)
        before, y, h = _accepted(solution, j)
        over = (t + h - _edge(solution, before + h, last)) * h.sign() > SLACK * h.abs()
        start, ahead = (x.view(-1, *[1] * (y.dim() - 1)) for x in (before, torch.where(over, 0.0, t - before)))
        with torch.no_grad(), Ambient.of(y)():
            y = solver.step(solution.problem, start, y, ahead).y
        return torch.where(over, before, t), y, h, (last - first).abs()


def _accepted(solution: Solution, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Time, state and size of step j of each row."""
    stats, rows = solution.stats, torch.arange(len(j), device=j.device)
    assert stats.states is not None
    return stats.times[rows, j], stats.states[rows, j], stats.steps[rows, j]


def _edge(solution: Solution, end: Tensor, last: Tensor) -> Tensor:
    """(B,) the first knot of the control path that is not before the end of an accepted step; without a path `last`."""
    path = path_of(solution.problem.context)
    if path is None:
        return last
    knots = path.knots.detach().to(end.dtype)
    knots = knots if knots.dim() == 2 else knots.expand(len(end), -1)
    place = torch.searchsorted(knots.contiguous(), (end - SLACK).unsqueeze(1)).clamp(max=knots.shape[1] - 1)
    return torch.minimum(knots.gather(1, place).squeeze(1), last)


def _noise(solution: Solution) -> Tensor | None:
    """Normals of a step of an SDE, of their own."""
    solver, y0 = solution.solver, solution.problem.y0
    if not isinstance(solver, AdaptiveStochastic):
        return None
    return torch.randn(len(y0), 2, solution.problem.field.noise_size, dtype=y0.dtype, device=y0.device)


@final
class LocalError(LocalCost):
    """The error of one step, an unbiased estimate of `GlobalError` with aggregate "sum".

    R = (t1 - t0) E(t*, y*, h), or N h E(t*, y*, h) with biased sampling; see `LocalCost`. Of an SDE E has the mean over
    all noise, that of `GlobalError` the mean over such noise as let the steps be accepted, which is smaller.
    """

    estimate: ClassVar[Estimate] = ErrorEstimate()

    def __init__(self, weight: float | Decay = 1.0, *, sampling: Sampling = "unbiased") -> None:
        super().__init__(weight, sampling)


@final
class LocalStiffness(LocalCost):
    """The stiffness of one step, S(t*, y*, h) / s; see `Stiffness` and `LocalCost`. Steps are not weighted by size."""

    estimate: ClassVar[Estimate] = StiffnessEstimate()

    def __init__(self, weight: float | Decay = 0.1, *, sampling: Sampling = "biased") -> None:
        super().__init__(weight, sampling)
