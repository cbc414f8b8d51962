"""Stochastic differential equations drawn at random, and solvers that can solve them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive_stochastic import PAIRS, AdaptiveStochastic, solves
from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Evaluation, Integrand
from ndeflow.numerics.field import NOISE_TYPES, SDE, SDE_TYPES, ByValue
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solution import Adjoint, Solution
from ndeflow.numerics.some import some_problem
from ndeflow.numerics.stochastic import SCHEMES, Stochastic

F64 = torch.float64


class Drawn(SDE):
    """dy = gain cos(t) sin(A y) dt + weight cos(C y) dW, odd in (y, W): -y solves it with -W.

    gain: a path's value, the context or 1. `calls` and `rows` count evaluations of the drift.
    """

    def __init__(self, noise_type: str, sde_type: str, size: int, noise_size: int, seed: int) -> None:
        super().__init__(noise_type=noise_type, sde_type=sde_type, noise_size=noise_size)
        draw = torch.Generator().manual_seed(seed)
        self.inner, self.outer = (nn.Parameter(torch.randn(size, size, dtype=F64, generator=draw)) for _ in range(2))
        self.weight = nn.Parameter(0.5 * torch.randn(size, noise_size, dtype=F64, generator=draw))
        self.calls = self.rows = 0

    def drift(self, t: Tensor, y: Tensor, gain: Tensor | None = None) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(y)
        rate = torch.cos(t) * torch.sin(y @ self.inner)
        return rate if gain is None else rate * gain.view(-1, 1)

    def diffusion(self, t: Tensor, y: Tensor, gain: Tensor | None = None) -> Tensor:
        if self.noise_type == "additive":
            return self.weight.expand(len(y), -1, -1)
        wave = torch.cos(y @ self.outer)
        return wave * self.weight[:, 0] if self.noise_type == "diagonal" else wave.unsqueeze(-1) * self.weight


class Speed(Integrand):
    """The integral of |drift|^2."""

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return at.dy.square().sum(dim=1)


@dataclass(frozen=True)
class Case:
    """A problem, and the solver of it. plain: the field as it was drawn, without the path that it may see."""

    problem: Problem
    solver: Marching
    plain: Drawn

    def solved(self, adjoint: Adjoint | None = None) -> Solution:
        return (adjoint or Direct())(self.solver, self.problem)

    def of(self, rows: list[int]) -> Case:
        """Some rows of it, each with its own noise."""
        return replace(self, problem=some_problem(self.problem, torch.tensor(rows)))

    def at(self, ts: Tensor) -> Case:
        return replace(self, problem=replace(self.problem, ts=ts))


@st.composite
def sdes(
    draw: st.DrawFn, *, adaptive: bool | None = None, batchings: tuple[str, ...] = ("shared", "per_sample")
) -> Case:
    """Of every noise and sense, with a solver for it; at least two times. adaptive: None: either."""
    adaptive = draw(st.booleans()) if adaptive is None else adaptive
    noise_type, sde_type = draw(st.sampled_from(NOISE_TYPES)), draw(st.sampled_from(SDE_TYPES))
    rows, size, seed = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 999))
    channels = {"diagonal": size, "scalar": 1}.get(noise_type, draw(st.integers(1, 3)))
    field = Drawn(noise_type, sde_type, size, channels, seed)
    numbers = torch.Generator().manual_seed(seed + 1)
    y0, ts = torch.randn(rows, size, dtype=F64, generator=numbers), _times(draw, rows, numbers)
    index = torch.randperm(1000, generator=numbers)[:rows] if draw(st.booleans()) else None
    noise, context, given = Brownian(seed, index, draw(st.booleans())), None, field
    if draw(st.booleans()):
        context = torch.rand(rows, dtype=F64, generator=numbers)
    elif ts.dim() == 1 and bool((ts.diff() > 0).all()) and draw(st.booleans()):
        context = Linear.through(ts, torch.randn(rows, len(ts), 1, dtype=F64, generator=numbers))
        given = ByValue(field)
    integrands = ((Speed(), None),) if draw(st.booleans()) else ()
    problem = Problem(given, y0, ts, context, integrands, noise)
    return Case(problem, _solver(draw, field, adaptive, batchings), field)


def _solver(draw: st.DrawFn, field: SDE, adaptive: bool, batchings: tuple[str, ...]) -> Marching:
    pairs = [name for name, pair in PAIRS.items() if solves(pair, field)]
    if adaptive and pairs:
        tolerance, batching = 10 ** draw(st.floats(-3, -1)), draw(st.sampled_from(batchings))
        return AdaptiveStochastic(draw(st.sampled_from(pairs)), tolerance, tolerance, compile="off", batching=batching)
    able = [
        name
        for name, scheme in SCHEMES.items()
        if field.noise_type in scheme.orders and (field.sde_type in scheme.calculi or field.noise_type == "additive")
    ]
    return Stochastic(draw(st.sampled_from(able)), draw(st.integers(1, 4)), compile="off")


def _times(draw: st.DrawFn, rows: int, numbers: torch.Generator) -> Tensor:
    """(T,) or (B, T), T >= 2, with repeats, padding and rows that stand still."""
    own, count = draw(st.booleans()), draw(st.integers(2, 5))
    at = torch.rand(rows if own else 1, count, dtype=F64, generator=numbers)
    if draw(st.booleans()):
        at = (3 * at).round() / 3
    at = at.sort(dim=1).values * 10 ** draw(st.floats(-2, 0.3)) + draw(st.sampled_from([0.0, -1.0, 50.0]))
    if own and draw(st.booleans()):
        at = torch.minimum(at, at[:, -2:-1])  # padded with an earlier time
    return at if own else at[0]
