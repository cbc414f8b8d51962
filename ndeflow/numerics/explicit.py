"""Adaptive explicit Runge-Kutta methods: one step, and the loop that accepts and rejects them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.controllers import Controller, I
from ndeflow.numerics.field import SDE
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.mesh import Place
from ndeflow.numerics.norms import stacked_norms
from ndeflow.numerics.segments import Segments, adaptive_segments
from ndeflow.numerics.solution import SolveError, Step
from ndeflow.numerics.stages import combine, hermite_mid, stages
from ndeflow.numerics.system import System
from ndeflow.numerics.tableaus import PAIRS, Tableau
from ndeflow.numerics.trace import Node, Trace


@dataclass
class Pace:
    """What the controller remembers: the next step as a fraction of a segment of mean length `length`, the error
    of the last accepted step."""

    dtheta: float
    length: float
    previous: float = 1.0

    def on(self, length: float) -> Pace:
        """The same step size on a segment of another length."""
        return Pace(min(1.0, self.dtheta * self.length / length), length, self.previous)


@final
@dataclass(frozen=True)
class RungeKutta(Marching):
    """An adaptive explicit Runge-Kutta pair, first same as last, with dense output.

    method: "heun" 2(1), "bosh3" 3(2), "dopri5" 5(4) or "tsit5" 5(4). A step is accepted if the RMS over batch and
    state of e / (atol + rtol max(|y0|, |y1|)) is at most 1: the batch shares its steps, so the error of one row
    may exceed the tolerance by up to sqrt(B); `stats.error` holds each row's own. Rows that stand still in a
    segment are left out of the mean. Step sizes are plain numbers: gradients are those of the discrete solve on
    its mesh. stats.stiffness (dopri5, tsit5) is |k_s - k_{s-1}| / |g_s - g_{s-1}|, each norm with a floor of
    eps^(2/3) |k_s| and eps^(2/3) |g_s|: at the floor it is the solution's own rate |dy/dt| / |y|, not stiff, and
    its gradient vanishes instead of being rounding noise.

    max_steps: attempted steps before SolveError. Raises ValueError at construction for an unknown method or
    non-positive tolerances, at the solve for tolerances below 10 eps of the state's dtype, and for an SDE.
    Hairer, Norsett, Wanner 1993, "Solving ordinary differential equations I", section II.4.
    """

    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-4
    controller: Controller = I()
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in PAIRS:
            raise ValueError(f"expected method {', '.join(PAIRS)}, got {self.method!r}")
        if self.rtol < 0 or self.atol <= 0:
            raise ValueError(f"expected rtol >= 0 and atol > 0, got rtol {self.rtol}, atol {self.atol}")
        if self.max_steps < 1:
            raise ValueError(f"expected max_steps of at least 1, got {self.max_steps}")

    @property
    def tableau(self) -> Tableau:
        return PAIRS[self.method]

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
        ratio, stiffness = system.size(self._scaled(system, z, z1, error)), None
        if tableau.stiffness:
            stiffness = _stiffness(*map(system.judged, (*ks[-2:], *points[-2:])))
        mid = None
        if system.dense and tableau.mid:
            mid = torch.addcmul(z, combine(tableau.mid, ks), h)
        elif system.dense:
            mid = hermite_mid(z, z1, h, ks[0], ks[-1])
        return Step(z1, error, ratio, stiffness, mid, ks[-1])

    def march(self, system: System) -> Trace:
        z, k = system.open()
        trace, pace, slope = Trace(z), None, k
        for leg in system.legs():
            slope = leg.slope(z) if slope is None else slope
            length = leg.mean_length()
            pace = Pace(self._first_step(leg, z, slope), length) if pace is None else pace.on(length)
            z, slope = self._cross(leg, z, slope, trace, pace), None
        trace.nfe = system.calls
        return trace

    def _cross(self, leg: System, z: Tensor, carry: Any, trace: Trace, pace: Pace) -> Tensor:
        """March to the end of one segment, appending to the trace; `pace` is left as the next segment needs it."""
        theta, fresh, order = 0.0, True, self.tableau.error_order + 1
        while theta < 1.0:
            last = theta + 1.01 * pace.dtheta >= 1.0
            dtheta = 1.0 - theta if last else pace.dtheta
            t, h = leg.moment(theta, dtheta)
            step = self.advance(leg, t, z, h, carry)
            assert step.ratio is not None
            ratio = _mean_square(step.ratio, leg.moving) ** 0.5
            proposed = dtheta * self.controller.factor(ratio, pace.previous, order)
            if ratio <= 1.0:
                trace.accept(Node(leg.segment, theta, dtheta, z, carry, fresh), step)
                z, carry, fresh = step.y, step.carry, False
                theta = 1.0 if last else theta + dtheta
                pace.previous, pace.dtheta = ratio, max(proposed, pace.dtheta) if last else proposed
            else:
                trace.reject(Place(leg.segment, theta, dtheta), step)
                pace.dtheta = proposed
                if proposed < leg.resolution():
                    raise self._failure(leg, theta, step, trace, proposed, "the step size underflowed")
            if len(trace.nodes) + trace.rejected >= self.max_steps and theta < 1.0:
                raise self._failure(leg, theta, step, trace, proposed, f"{self.max_steps} steps were not enough")
        return z

    def _scaled(self, system: System, z0: Tensor, z1: Tensor, error: Tensor) -> Tensor:
        """e / (atol + rtol max(|z0|, |z1|)) over the judged part; the scale is a constant for autograd."""
        size = torch.maximum(system.judged(z0.detach()).abs(), system.judged(z1.detach()).abs())
        return system.judged(error) / (size * self.rtol + self.atol)

    @torch.no_grad()
    def _first_step(self, leg: System, z: Tensor, slope: Tensor) -> float:
        """Hairer's starting step as a fraction of the segment; one evaluation.

        Hairer, Norsett, Wanner 1993, section II.4, "Starting step size", with all lengths as fractions.
        """
        length = leg.length.to(z.dtype.to_real())
        rate = length * slope
        scale = leg.judged(z).abs() * self.rtol + self.atol
        norms = [leg.size(leg.judged(x) / scale) for x in (z, rate)]
        d0, d1 = torch.linalg.vector_norm(torch.stack(norms) / math.sqrt(leg.moving), dim=1).tolist()
        if not math.isfinite(d0 + d1):
            raise _non_finite_start(leg, slope, self)
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else min(1.0, 0.01 * d0 / d1)
        t, _ = leg.moment(h0, 0.0)
        change = length * (leg(t.to(length.dtype), z + h0 * rate) - slope)
        d2 = _mean_square(leg.size(leg.judged(change) / scale), leg.moving) ** 0.5 / h0
        steepest = max(d1, d2) if math.isfinite(d2) else math.inf
        h1 = max(1e-6, h0 * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / (self.tableau.error_order + 1))
        return min(1.0, 100 * h0, max(h1, h0 * 1e-3))

    def _failure(self, leg: System, theta: float, step: Step, trace: Trace, dtheta: float, reason: str) -> SolveError:
        """The error for a march that stops at a fraction theta of a segment; names the worst row."""
        assert step.ratio is not None
        ratio = step.ratio.detach().nan_to_num(nan=math.inf, posinf=math.inf)
        row = int(ratio.argmax())
        t, h = leg.row_moment(theta, dtheta, row)
        broken = not math.isfinite(ratio[row].item())
        what = "the field is non-finite there" if broken else f"its scaled error is {ratio[row].item():.3g}"
        cure = "loosen rtol and atol, raise max_steps or solve in float64"
        cure = "bound the field or its parameters" if broken else cure
        return SolveError(
            f"{reason} at time {t:.6g} with step size {h:.3g} in row {row}: {what} "
            f"({self.method}, {len(trace.nodes)} steps accepted, {trace.rejected} rejected); {cure}"
        )


def _mean_square(ratio: Tensor, moving: int) -> float:
    """The mean square of the rows' scaled errors over the rows that move; one host read."""
    return torch.linalg.vector_norm(ratio.detach()).item() ** 2 / moving


def stiffness_floor(dtype: torch.dtype) -> float:
    """The relative difference of two stages below which they are called equal: far above rounding."""
    return torch.finfo(dtype).eps ** (2 / 3)


def _stiffness(k0: Tensor, k1: Tensor, g0: Tensor, g1: Tensor) -> Tensor:
    """|k1 - k0| / |g1 - g0| of each row with its floors: (B,)."""
    norms = stacked_norms(k1 - k0, g1 - g0, k1, g1)
    floors = norms[2:].detach() * stiffness_floor(norms.dtype) + torch.finfo(norms.dtype).tiny
    rise, run = torch.hypot(norms[:2], floors).unbind()
    return rise / run


def _non_finite_start(leg: System, slope: Tensor, solver: RungeKutta) -> SolveError:
    bad = slope.isfinite().reshape(len(slope), -1).all(dim=1).logical_not()
    row = int(bad.int().argmax())
    t, h = leg.row_moment(0.0, 1.0, row)
    return SolveError(
        f"the state or its rate is non-finite at time {t:.6g} in row {row}, before the first step over {h:.3g} "
        f"({solver.method}); look for NaN in the inputs or in the field's parameters"
    )
