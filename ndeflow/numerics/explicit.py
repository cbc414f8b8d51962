"""Adaptive explicit Runge-Kutta methods: one step, the first step's size, and the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.compilation import check_choice, stepper_for
from ndeflow.numerics.controllers import Controller, I
from ndeflow.numerics.field import SDE
from ndeflow.numerics.form import AdaptiveForm
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.masking import check_on_failure
from ndeflow.numerics.norms import stacked_norms
from ndeflow.numerics.pacing import Pace, Rules, Shared
from ndeflow.numerics.persample import PerSample
from ndeflow.numerics.segments import Segments, adaptive_segments
from ndeflow.numerics.solution import NON_FINITE, SolveError, Step
from ndeflow.numerics.stages import combine, hermite_mid, stages
from ndeflow.numerics.stepper import Eager, Stepper
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.tableaus import PAIRS, Tableau
from ndeflow.numerics.trace import Trace, partial


@final
@dataclass(frozen=True)
class RungeKutta(Marching):
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
    rtol: float = 1e-4
    atol: float = 1e-4
    controller: Controller = I()
    max_steps: int = 10_000
    compile: str = "auto"
    compile_after: int = 100_000
    batching: str = "shared"
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        if self.method not in PAIRS:
            raise ValueError(f"expected method {', '.join(PAIRS)}, got {self.method!r}")
        if not (0 <= self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(f"expected finite rtol >= 0 and atol > 0, got rtol {self.rtol}, atol {self.atol}")
        check_choice(self.compile)
        if self.max_steps < 1:
            raise ValueError(f"expected max_steps of at least 1, got {self.max_steps}")

        if self.batching not in ("shared", "per_sample"):
            raise ValueError(f"expected batching shared or per_sample, got {self.batching!r}")
        check_on_failure(self.on_failure)
        if self.masks and not self.apart:
            raise ValueError(
                "expected batching=per_sample for on_failure=mask, got shared, whose rows fail together; set "
                "batching=per_sample, or on_failure=raise"
            )

    @property
    def apart(self) -> bool:
        return self.batching == "per_sample"

    @property
    def tableau(self) -> Tableau:
        return PAIRS[self.method]

    @property
    def rules(self) -> Rules:
        return Rules(self.controller, self.tableau.error_order + 1, self.max_steps, self.method)

    def check(self, problem: Problem) -> None:
        if isinstance(problem.field, SDE):
            raise ValueError("expected an ODE for RungeKutta, got an SDE; use solver=Stochastic()")
        eps = torch.finfo(problem.y0.dtype).eps
        if max(self.rtol, self.atol) < 10 * eps:
            raise ValueError(
                f"expected a tolerance of at least {10 * eps:.1e} for {problem.y0.dtype}, got rtol {self.rtol:.1e}, "
                f"atol {self.atol:.1e}; raise it or solve in float64"
            )

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
        judged = torch.add(error, reached.detach(), alpha=0)  # non-finite where the step's result is
        ratio, stiffness = system.size(self._scaled(system, z, z1, judged), judged), None
        if tableau.stiffness:
            stiffness = _stiffness(*map(system.judged, (*ks[-2:], *points[-2:])))
        return Step(z1, error, ratio, stiffness, mid, ks[-1])

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> Self:
        system.engine = stepper_for(self, AdaptiveForm(self), system, recording, keeping)
        return self

    def march(self, system: System) -> Trace:
        stepper = system.engine or Eager(self, system)
        z, slope = stepper.open()
        trace = Trace(z, apart=self.apart, estimated=(True, self.tableau.stiffness))
        try:
            self._cross(system, stepper, self._pace(stepper, trace), slope)
        except SolveError as error:
            if isinstance(system, InitialValue) and error.status is not None and not (error.status == NON_FINITE).any():
                error.partial = partial(self, system, trace)
            raise
        stepper.close()
        trace.nfe = system.evaluations() if self.apart else system.calls
        return trace

    def _cross(self, system: System, stepper: Stepper, pace: Pace, slope: Tensor | None) -> None:
        for leg in system.legs():
            pace.enter(leg, slope)
            slope = None
            while pace.open:
                t, h = pace.attempt()
                pace.take(stepper.step(pace.leg, t, pace.z, h, pace.carry))

    def _pace(self, stepper: Stepper, trace: Trace) -> Pace:
        if self.apart:
            return PerSample(self.rules, stepper, trace, self.masks)
        return Shared(self.rules, stepper, trace)

    def _scaled(self, system: System, z0: Tensor, z1: Tensor, error: Tensor) -> Tensor:
        """e / (atol + rtol max(|z0|, |z1|)) over the judged part; the scale is a constant for autograd."""
        size = torch.maximum(system.judged(z0.detach()).abs(), system.judged(z1.detach()).abs())
        return system.judged(error) / (size * self.rtol + self.atol)

    @torch.no_grad()
    def start(self, leg: System, z: Tensor, slope: Tensor) -> Tensor:
        """Hairer's starting step as a fraction of the segment: 0-dim, or (B,) of each row; non-finite as the start.

        One evaluation, and no number read from the device. Hairer, Norsett, Wanner 1993, section II.4, "Starting
        step size", with all lengths as fractions.
        """
        length = leg.length.to(z.dtype.to_real())
        rate = length * slope
        scale = leg.judged(z).abs() * self.rtol + self.atol
        d0, d1 = (self._norm(leg, x, scale) for x in (z, rate))
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, (0.01 * d0 / d1).clamp(max=1.0))
        ahead = leg.column(h0)
        t = leg.start + leg.length * ahead
        change = length * (leg(t.to(length.dtype), z + ahead.to(length.dtype) * rate) - slope)
        d2 = self._norm(leg, change, scale) / h0
        steepest = torch.where(d2.isfinite(), torch.maximum(d1, d2), math.inf)
        least = h0 * 1e-3
        h1 = (0.01 / steepest) ** (1 / self.rules.order)
        h1 = torch.where(steepest <= 1e-15, least.clamp(min=1e-6), h1)
        dtheta = torch.minimum(100 * h0, torch.maximum(h1, least)).clamp(max=1.0)
        return torch.where((d0 + d1).isfinite(), dtheta, math.nan)

    def _norm(self, leg: System, z: Tensor, scale: Tensor) -> Tensor:
        """The root mean square of each row's judged part of z, or over the rows that move, as wide as times are."""
        sizes = leg.size(leg.judged(z) / scale, z).to(leg.start.dtype)
        return sizes if self.apart else torch.linalg.vector_norm(sizes) / leg.moving**0.5


def stiffness_floor(dtype: torch.dtype) -> float:
    """The relative difference of two stages below which they are called equal: far above rounding."""
    return torch.finfo(dtype).eps ** (2 / 3)


def _stiffness(k0: Tensor, k1: Tensor, g0: Tensor, g1: Tensor) -> Tensor:
    """|k1 - k0| / |g1 - g0| of each row with its floors: (B,)."""
    norms = stacked_norms(k1 - k0, g1 - g0, k1, g1)
    floors = norms[2:].detach() * stiffness_floor(norms.dtype) + torch.finfo(norms.dtype).tiny
    rise, run = torch.hypot(norms[:2], floors).unbind()
    return rise / run
