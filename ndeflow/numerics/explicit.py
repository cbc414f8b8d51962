"""Adaptive explicit Runge-Kutta methods: one step, and the first step's size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.compilation import stepper_for
from ndeflow.numerics.field import SDE
from ndeflow.numerics.form import PairForm
from ndeflow.numerics.segments import Segments, adaptive_segments
from ndeflow.numerics.solution import Step
from ndeflow.numerics.stages import combine, hermite_mid, stages
from ndeflow.numerics.stiffness import quotient
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.tableaus import PAIRS, Tableau


@final
@dataclass(frozen=True)
class RungeKutta(Adaptive):
    """An adaptive explicit Runge-Kutta pair, first same as last, with dense output.

    method: "heun" 2(1), "bosh3" 3(2), "dopri5" 5(4) or "tsit5" 5(4). batching: "shared", one step for all rows, is
    accepted if the RMS over batch and state of e / (atol + rtol max(|y0|, |y1|)) is at most 1: the error of one row
    may exceed the tolerance by up to sqrt(B); `stats.error` holds each row's own. Rows that stand still in a
    segment are left out of the mean. "per_sample": each row takes steps of its own, by its own RMS, as if it were
    alone, and is evaluated no more once it is at the end of a segment; a few rows that need many steps then cost only
    their own evaluations, and every row keeps the tolerance.

    Step sizes are plain numbers: gradients are those of the discrete solve on its mesh. stats.stiffness (dopri5,
    tsit5) is |k_s - k_{s-1}| / |g_s - g_{s-1}|, each norm with a floor of eps^(2/3) |k_s| and eps^(2/3) |g_s|: at the
    floor it is the solution's own rate |dy/dt| / |y|, not stiff, and its gradient vanishes instead of being rounding
    noise.

    compile: "on": steps and their gradients run as machine code, compiled at the first solve (about half a minute for a
    field, kept on disk; the answers are those of the eager loop to rounding); "off": never; "auto": once a field has
    spent `compile_after` evaluations in solves that record gradients, where a C++ compiler is there, and not in half
    precision. What a field must not do to be compiled is said when it does: with "on" as ValueError, with "auto" in the
    log.

    max_steps: attempted steps, of a row where rows step apart, before it fails. on_failure: "raise" a SolveError, or
    with "per_sample" also "mask": a row that fails has `stats.status` > 0 and NaN at the times it does not reach,
    is no part of any gradient, and leaves the others alone. Raises ValueError at construction for unknown names and
    non-positive tolerances, at the solve for tolerances below 10 eps of the state's dtype, and for an SDE.
    Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.4.
    """

    method: str = "dopri5"

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(PAIRS)

    @property
    def order(self) -> float:
        return self.tableau.error_order + 1

    @property
    def evaluations(self) -> int:
        """Of the field, in a step whose first slope is known."""
        return len(self.tableau.c) - 1

    @property
    def stiffness(self) -> bool:
        return self.tableau.stiffness

    @property
    def stability(self) -> float:
        return self.tableau.stability

    @property
    def tableau(self) -> Tableau:
        return PAIRS[self.method]

    def check(self, problem: Problem) -> None:
        if isinstance(problem.field, SDE):
            raise ValueError("expected an ODE for RungeKutta, got an SDE; use solver=Stochastic()")
        super().check(problem)

    def cut(self, problem: Problem) -> Segments:
        return adaptive_segments(problem)

    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        tableau, dtype = self.tableau, z.dtype.to_real()
        t, h = t.to(dtype), h.to(dtype)
        ks, points = stages(system, tableau, t, z, h, carry)
        z1, error = points[-1], combine(tableau.error or (), ks) * h
        mid, reached = None, z1
        if system.dense and tableau.mid:
            mid = torch.addcmul(z, combine(tableau.mid, ks), h)
        elif system.dense:
            mid = reached = hermite_mid(z, z1, h, ks[0], ks[-1])
        stiffness = None
        if tableau.stiffness:
            k0, k1, g0, g1 = map(system.judged, (*ks[-2:], *points[-2:]))
            stiffness = quotient(k1 - k0, g1 - g0, k1, g1)
        return self.estimated(system, z, Step(z1, error, None, stiffness, mid, ks[-1]), reached)

    def reach(self, system: System, t: Tensor, z: Tensor, h: Tensor) -> Tensor:
        t, h = t.to(z.dtype.to_real()), h.to(z.dtype.to_real())
        ks, _ = stages(system, self.tableau.inner, t, z, h, None)
        return torch.addcmul(z, combine(self.tableau.a[-1], ks), h)

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> Self:
        system.engine = stepper_for(self, PairForm, self, system, recording, keeping)
        return self

    @torch.no_grad()
    def start(self, leg: System, z: Tensor, slope: Tensor) -> Tensor:
        """Hairer's starting step as a fraction of the segment: 0-dim, or (B,) of each row; non-finite as the start.

        One evaluation, and no number read from the device. Hairer, Norsett, Wanner 1993, section II.4, "Starting
        step size", with all lengths as fractions.
        """
        length = leg.length.to(z.dtype.to_real())
        rate = length * slope
        size = leg.judged(z).abs()
        d0, d1 = (self.norm(leg, x, size) for x in (z, rate))
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, (0.01 * d0 / d1).clamp(max=1.0))
        ahead = leg.column(h0)
        t = leg.start + leg.length * ahead
        change = length * (leg(t.to(length.dtype), z + ahead.to(length.dtype) * rate) - slope)
        d2 = self.norm(leg, change, size) / h0
        steepest = torch.where(d2.isfinite(), torch.maximum(d1, d2), math.inf)
        least = h0 * 1e-3
        h1 = (0.01 / steepest) ** (1 / self.order)
        h1 = torch.where(steepest <= 1e-15, least.clamp(min=1e-6), h1)
        dtheta = torch.minimum(100 * h0, torch.maximum(h1, least)).clamp(max=1.0)
        return torch.where((d0 + d1).isfinite(), dtheta, math.nan)
