"""Penalties on what one step costs, from a random time on: with any adjoint, for one more step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Problem, Solved
from ndeflow.numerics import single
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.field import path_of
from ndeflow.numerics.solution import Solution
from ndeflow.regularizers.solvers import needs_error, needs_stiffness
from ndeflow.regularizers.solves import SolvePenalty, read_at_random

Sampling = Literal["unbiased", "biased"]
SLACK = 1e-6  # of a step


class Start(NamedTuple):
    """Where a step begins: t, its size h and a weight, each (B,), and y, (B, *state), all constants."""

    t: Tensor
    y: Tensor
    h: Tensor
    weight: Tensor


class LocalCost(SolvePenalty):
    """An estimate of one more step, from a state y* on the solution at a random time t*.

    The step has the size h of the accepted one that covers t*; t*, y* and h are constants, the first stage is not. From
    a t* so late that the step would pass the end of the solve, or a knot of its control path, the accepted step itself
    is taken. No gradient of the solve is needed, and so any adjoint serves. Pal, Edelman, Rackauckas 2023, "Locally
    regularized neural differential equations", section 3; there the first stage is a constant too, whose gradient is
    not that of the error.

    sampling: "unbiased", t* uniform in time; "biased", at the start of an accepted step, each as likely as the others:
    denser where the dynamics are hard. Both are weighted to have the mean of the sum over all steps. All rows have one
    t*, as a fraction of their times, and with "biased" where rows step apart each its own. Several solves are added up.
    A step of an SDE has noise of its own; its y* between two steps is interpolated linearly, and so only with shared
    stepping.
    """

    def __init__(self, weight: float | Decay, sampling: Sampling) -> None:
        super().__init__(weight)
        if sampling not in ("unbiased", "biased"):
            raise ValueError(f"expected sampling unbiased or biased, got {sampling!r}")
        self.sampling = sampling

    @abstractmethod
    def refuse(self, solver: Any) -> None:
        """Raise ValueError, with the cure, for a solver whose steps do not estimate it."""

    @abstractmethod
    def term(self, error: Tensor | None, stiffness: Tensor | None, start: Start, solver: Any) -> Tensor:
        """(B,), of the step's estimates; its root mean square, or where rows step apart its mean, is the penalty."""

    def check(self, model: Any) -> None:
        solver = model.solver
        if solver is not None:
            self.refuse(solver)
        if isinstance(solver, AdaptiveStochastic) and solver.apart and self.sampling == "unbiased":
            raise ValueError(
                "expected sampling=biased where the rows of an SDE step apart, whose states are known at the ends of "
                "their steps, got unbiased; use sampling=biased, or batching=shared"
            )

    def prepare(self, problem: Problem) -> Problem:
        problem = replace(problem, keep_mesh=True)
        if self.sampling == "biased":
            return problem
        return read_at_random(problem, 1)

    def of(self, one: Solved) -> Tensor:
        solution = one.solution
        solver = solution.solver
        self.refuse(solver)
        assert isinstance(solver, Adaptive)
        if solution.stats.steps.shape[1] == 0:
            return solution.ys.sum() * 0.0
        start = self._biased(solution) if self.sampling == "biased" else self._unbiased(one)
        error, stiffness = single.estimates(solver, solution.problem, start.t, start.y, start.h, _noise(solution))
        terms = self.term(error, stiffness, start, solver)
        return terms.mean() if solver.apart else torch.linalg.vector_norm(terms) / len(terms) ** 0.5

    def _biased(self, solution: Solution) -> Start:
        """At an accepted step, one of N: weight N h."""
        stats, solver = solution.stats, solution.solver
        assert isinstance(solver, Adaptive)
        counts = stats.accepted
        u = torch.rand(len(counts) if solver.apart else 1, device=counts.device)
        j = (u * counts).long().clamp(max=stats.steps.shape[1] - 1)
        t, y, h = _accepted(solution, j)
        return Start(t, y, h, counts.clamp(min=1) * h.abs())

    def _unbiased(self, one: Solved) -> Start:
        """At the probe, with the size of the step that covers it: weight t1 - t0."""
        solution, place = one.solution, one.probes.start
        ts = solution.ts.detach()
        ts = (ts if ts.dim() == 2 else ts.expand(len(solution.ys), -1)).to(solution.stats.times.dtype)
        t, last = ts[:, place], ts[:, solution.problem.ts.shape[-1] - 1]
        times, steps = solution.stats.times, solution.stats.steps
        moves = steps != 0
        fraction = (t.unsqueeze(1) - times) / torch.where(moves, steps, 1.0)
        j = (moves & (fraction >= 0) & (fraction <= 1 + SLACK)).long().argmax(dim=1)
        before, y, h = _accepted(solution, j)
        over = (t + h - _edge(solution, before + h, last)) * h.sign() > SLACK * h.abs()
        state = solution.ys[:, place].detach()
        y = torch.where(over.view(-1, *[1] * (y.dim() - 1)), y, state)
        return Start(torch.where(over, before, t), y, h, (last - ts[:, 0]).abs())


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

    def __init__(self, weight: float | Decay = 1.0, *, sampling: Sampling = "unbiased") -> None:
        super().__init__(weight, sampling)

    def refuse(self, solver: Any) -> None:
        needs_error(solver, type(self).__name__)

    def term(self, error: Tensor | None, stiffness: Tensor | None, start: Start, solver: Any) -> Tensor:
        assert error is not None
        return error * start.weight.to(error.dtype)


@final
class LocalStiffness(LocalCost):
    """The stiffness of one step, S(t*, y*, h) / s; see `Stiffness` and `LocalCost`. Steps are not weighted by size."""

    def __init__(self, weight: float | Decay = 0.1, *, sampling: Sampling = "biased") -> None:
        super().__init__(weight, sampling)

    def refuse(self, solver: Any) -> None:
        needs_stiffness(solver, type(self).__name__)

    def term(self, error: Tensor | None, stiffness: Tensor | None, start: Start, solver: Any) -> Tensor:
        assert stiffness is not None
        return stiffness / solver.stability
