"""The local penalty as its published code has it, to be compared with the one of the error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Problem, Solved
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.regularizers.solves import SolvePenalty, needs_derivative, read_at_random


@final
class ReleasedLocalError(SolvePenalty):
    """R = h E(t*, y*, h) of one step from a random time t*, with y*, h and the first stage k1 constants.

    h is the solver's first step size at (t*, y*), far below the steps that it accepts, so that R is next to nothing;
    and with k1 a constant the gradient of the embedded difference is not that of the error, but has a part of order h,
    -h b1 dk1/dtheta, b1 the difference of the pair's first weights, that has nothing to do with it. `LocalError` is the
    form to train with. Pal, Edelman, Rackauckas 2023, "Locally regularized neural differential equations", as in the
    code that accompanies it; several solves are added up. Raises ValueError for a solver other than `RungeKutta`.
    """

    def __init__(self, weight: float | Decay = 1.0) -> None:
        super().__init__(weight)

    def check(self, model: Any) -> None:
        if model.solver is not None:
            _refuse(model.solver)

    def prepare(self, problem: Problem) -> Problem:
        needs_derivative(problem, type(self).__name__)
        return read_at_random(problem, 1)

    def of(self, one: Solved) -> Tensor:
        solution, place, last = one.solution, one.probes.start, one.solution.problem.ts.shape[-1] - 1
        solver, y = solution.solver, solution.ys[:, place].detach()
        _refuse(solver)
        assert isinstance(solver, RungeKutta)
        rest = replace(
            solution.problem,
            y0=y,
            ts=solution.ts.detach()[..., [place, last]],
            integrands=(),
            probes=None,
        )
        with torch.no_grad():
            system = solver.system(rest)
            slope = system.open()[1]
            leg = next(system.legs())
            h = leg.length * leg.column(solver.start(leg, y, slope))
        ratio = solver.step(rest, leg.start, y, h, carry=slope).ratio
        assert ratio is not None
        return torch.linalg.vector_norm(ratio * h.abs().flatten().to(ratio)) / len(y) ** 0.5


def _refuse(solver: Any) -> None:
    if not isinstance(solver, RungeKutta):
        raise ValueError(f"expected RungeKutta for ReleasedLocalError, got {solver}; use LocalError")
