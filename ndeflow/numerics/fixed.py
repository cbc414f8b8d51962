"""Explicit Runge-Kutta methods with a fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.chunks import engaged
from ndeflow.numerics.compilation import check_choice
from ndeflow.numerics.field import SDE
from ndeflow.numerics.marching import FixedMarching
from ndeflow.numerics.masking import check_on_failure
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stages import combine, hermite_mid, stages
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.tableaus import FIXED, Tableau


@final
@dataclass(frozen=True)
class FixedRungeKutta(FixedMarching):
    """A fixed-step Runge-Kutta method: "euler" (order 1), "midpoint" (2) or "rk4" (4).

    steps: equal steps a save interval, or a piece of the control path where there is one; then save times must be
    knots. Probes are read from cubic Hermite interpolants and cost one evaluation a solve, or a knot. compile,
    compile_after: as of `RungeKutta`; solves with probes are not compiled.

    on_failure: "raise" a SolveError, or "mask": a row that becomes non-finite has `stats.status` > 0 and NaN at the
    times it does not reach, is no part of any gradient, and leaves the others alone, which are solved once more without
    it where gradients are recorded. stats.nfe counts both solves, of a failed row the whole of the first;
    stats.accepted the steps before it failed.

    Raises ValueError at construction for an unknown method or no steps, at the solve for an SDE.
    """

    method: str = "rk4"
    steps: int = 1
    compile: str = "auto"
    compile_after: int = 100_000
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        check_choice(self.compile)
        check_on_failure(self.on_failure)
        if self.method not in FIXED:
            raise ValueError(f"expected method {', '.join(FIXED)}, got {self.method!r}")
        if self.steps < 1:
            raise ValueError(f"expected at least 1 step, got {self.steps}")

    @property
    def tableau(self) -> Tableau:
        return FIXED[self.method]

    @property
    def evaluations(self) -> int:
        return len(self.tableau.c)

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> FixedMarching:
        return self if system.dense else engaged(self, system, recording, keeping)

    def check(self, problem: Problem) -> None:
        if isinstance(problem.field, SDE):
            raise ValueError("expected an ODE for FixedRungeKutta, got an SDE; use solver=Stochastic()")

    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        dtype = z.dtype.to_real()
        t, h = t.to(dtype), h.to(dtype)
        ks, _ = stages(system, self.tableau, t, z, h, carry)
        z1 = torch.addcmul(z, combine(self.tableau.b, ks), h)
        if not system.dense:
            return Step(z1, None, None, None, None, None)
        slope = system(t + h, z1)
        return Step(z1, None, None, None, hermite_mid(z, z1, h, ks[0], slope), slope)
