"""Initial value problems drawn at random, with SciPy's answers at tight tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.controllers import PI, I
from ndeflow.numerics.derivatives import Evaluation, Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solution import Adjoint, Solution, Solver

LENGTH = 3.0  # of every span, in units of the field's own time
SHAPES = ((), (1,), (2,), (3,), (2, 3), (2, 1))
LOOSEST = {"heun": (-5.0, -3.0), "bosh3": (-7.0, -3.0), "dopri5": (-10.0, -3.0), "tsit5": (-10.0, -3.0)}
RATES = {  # g(functions, tau, y), for tensors and for arrays
    "linear": lambda m, tau, y: -y,
    "growth": lambda m, tau, y: 0.7 * y,
    "logistic": lambda m, tau, y: y * (1 - y),
    "oscillating": lambda m, tau, y: m.cos(3 * tau) * y,
    "forced": lambda m, tau, y: m.sin(2 * y) + 0.5 * m.cos(3 * tau),
}
TIMED = ("oscillating", "forced")


class Rate(nn.Module):
    """dy/dt = k gain context g(k (t - t0), y), elementwise; `calls` and `rows` count what was evaluated."""

    def __init__(self, name: str, k: float, t0: float) -> None:
        super().__init__()
        self.name, self.k, self.t0 = name, k, t0
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls = self.rows = 0

    def forward(self, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(y)
        dy = RATES[self.name](torch, self.k * (t - self.t0), y) * (self.k * self.gain.to(y.dtype.to_real()))
        return dy if context is None else dy * context.view(-1, *[1] * (y.dim() - 1))


class Square(Integrand):
    """k times the mean of |y|^2 over the state."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return self.k * at.y.square().reshape(len(at.y), -1).mean(dim=1)


@dataclass(frozen=True)
class Case:
    """A problem, and the solver of it. tolerance: rtol and atol, or what fixed steps are held to."""

    problem: Problem
    solver: Solver
    tolerance: float

    def solved(self, adjoint: Adjoint | None = None) -> Solution:
        return (adjoint or Direct())(self.solver, self.problem)

    def under(self, **settings: Any) -> Case:
        """The same problem with some of the solver's settings changed."""
        assert isinstance(self.solver, RungeKutta)
        return replace(self, solver=replace(self.solver, **settings))

    def of(self, rows: list[int]) -> Case:
        """Some rows of it."""
        own = self.problem
        ts = own.ts[rows] if own.ts.dim() == 2 else own.ts
        probes = own.probes if own.probes is None or own.probes.dim() == 1 else own.probes[rows]
        context = None if own.context is None else own.context[rows]
        return replace(self, problem=replace(own, y0=own.y0[rows], ts=ts, probes=probes, context=context))

    def at(self, ts: Tensor) -> Case:
        """The same start, read at other times."""
        return replace(self, problem=replace(self.problem, ts=ts, probes=None))

    @property
    def times(self) -> Tensor:
        """Save times and probes of every row, (B, M) float64."""
        own = self.problem
        all_times = own.ts if own.probes is None else torch.cat([own.ts, own.probes], dim=-1)
        return all_times.double().expand(len(own.y0), -1)

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """States (B, M, *state) and integrals of |y|^2 (B, M), row by row by DOP853 at 1e-12."""
        field, y0 = self.problem.field, self.problem.y0.detach()
        wide = y0.to(torch.complex128 if y0.is_complex() else torch.float64).numpy()
        taus = (field.k * (self.times.detach() - field.t0)).numpy()
        gains = np.ones(len(y0)) if self.problem.context is None else self.problem.context.detach().double().numpy()
        rows = [_row(field.name, gain, y, tau) for gain, y, tau in zip(gains, wide, taus, strict=True)]
        return np.stack([y for y, _ in rows]), np.stack([q for _, q in rows])


def _row(name: str, gain: float, y0: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, *state) and (M,) at tau (M,), in any order after the first."""

    def rates(now: float, z: np.ndarray) -> np.ndarray:
        return np.append(gain * RATES[name](np, now, z[:-1]), np.mean(np.abs(z[:-1]) ** 2))

    after, places = np.unique(tau, return_inverse=True)
    z0 = np.append(y0.ravel(), 0.0)
    zs = np.repeat(z0[None], len(after), axis=0)
    if len(after) > 1:
        span = (after[0], after[-1])
        with np.errstate(all="ignore"):  # its smallest step at time 0 underflows, whatever else asks to hear of that
            zs = solve_ivp(rates, span, z0, method="DOP853", t_eval=after, rtol=1e-12, atol=1e-13).y.T
    zs = zs[places]
    return zs[:, :-1].reshape(len(tau), *y0.shape), zs[:, -1].real


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    adaptive: bool = True,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.complex128),
    batchings: tuple[str, ...] = ("shared", "per_sample"),
    most: int = 40,
    tightest: float = -10.0,
) -> Case:
    """Problems of every shape, direction and layout of times, at least one row of which may move."""
    dtype = draw(st.sampled_from(dtypes))
    solver, tolerance = _solver(draw, dtype, batchings, tightest) if adaptive else (FixedRungeKutta("rk4", 25), 1e-3)
    name = draw(st.sampled_from(sorted(RATES)))
    span, t0 = _span(draw, dtype, tolerance, name in TIMED)
    rows, shape = draw(st.integers(1, 7)), draw(st.sampled_from(SHAPES))
    numbers = np.random.default_rng(draw(st.integers(0, 9999)))
    y0 = torch.from_numpy(np.asarray(numbers.uniform(0.1, 1.6, (rows, *shape)))).to(dtype)
    ts = torch.from_numpy(t0 + span * _fractions(draw, numbers, rows, most))
    field = Rate(name, LENGTH / span, t0)
    context = torch.from_numpy(numbers.uniform(0.3, 1.3, rows)).to(dtype.to_real()) if draw(st.booleans()) else None
    integrands = ((Square(LENGTH / span), None),) if not dtype.is_complex and draw(st.booleans()) else ()
    problem = Problem(field, y0, ts, context, integrands)
    if draw(st.booleans()):
        ends = ts[..., :1], ts[..., -1:]
        inner = torch.from_numpy(numbers.uniform(0, 1, (*ts.shape[:-1], 3)))
        problem = problem.with_probes(torch.lerp(*ends, inner))
    return Case(problem, solver, tolerance)


def _solver(
    draw: st.DrawFn, dtype: torch.dtype, batchings: tuple[str, ...], tightest: float
) -> tuple[RungeKutta, float]:
    method = draw(st.sampled_from(sorted(LOOSEST)))
    low, high = LOOSEST[method]
    low = max(low, tightest, -5.0 if dtype == torch.float32 else low)
    tolerance = 10 ** draw(st.floats(low, high))
    controller, batching = draw(st.sampled_from([I(), PI()])), draw(st.sampled_from(batchings))
    return RungeKutta(method, tolerance, tolerance, controller, compile="off", batching=batching), tolerance


def _span(draw: st.DrawFn, dtype: torch.dtype, tolerance: float, timed: bool) -> tuple[float, float]:
    """A span, negative where time runs back, and a first time that does not blur what the field sees of time."""
    span = 10 ** draw(st.floats(-6, 3))
    farthest = 1e4 if not timed else min(1e4, 0.01 * tolerance * span / torch.finfo(dtype).eps)
    t0 = farthest * draw(st.sampled_from([0.0, 1.0, -1.0])) * 10 ** draw(st.floats(-3, 0))
    return math.copysign(span, draw(st.sampled_from([1, -1]))), t0


def _fractions(draw: st.DrawFn, numbers: np.random.Generator, rows: int, most: int) -> np.ndarray:
    """(T,) or (B, T) rising in [0, 1]: with repeats, padding, rows that stand still, or all at the start."""
    count, kind = draw(st.integers(1, most)), draw(st.sampled_from(["spread", "repeated", "start"]))
    own = draw(st.booleans())
    at = numbers.uniform(0, 1, (rows if own else 1, count))
    if kind == "repeated":
        at = np.round(4 * at) / 4
    at = np.sort(at, axis=1) * (kind != "start")
    at[:, 0] = 0.0
    if not own:
        return at[0]
    reach = np.array([draw(st.sampled_from([1.0, 1.0, 0.4, 0.01, 0.0])) for _ in range(rows)])[:, None]
    late = np.array([draw(st.sampled_from([0.0, 0.3])) for _ in range(rows)])[:, None]
    at = np.minimum(at, draw(st.sampled_from([1.0, 0.6])))  # padded with the last time
    return late * (1 - reach) + reach * at
