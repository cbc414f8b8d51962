"""AdaptiveStochastic: errors against tolerances, the law of its solutions, one path whatever is rejected, gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive_stochastic import PAIRS, AdaptiveStochastic, solves
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE, SDE_TYPES
from ndeflow.numerics.solution import Solution, SolveError
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.numerics.tree import BrownianTree
from tests.numerics.test_stochastic import Free, Growth, Pull, Waves, tensor

F64 = torch.float64
LEGAL = [
    (method, sde_type, noise_type)
    for method, pair in PAIRS.items()
    for sde_type in SDE_TYPES
    for noise_type in ("diagonal", "scalar", "additive", "general")
    if solves(pair, Waves(noise_type, sde_type))
]
BATCHING = ["shared", "per_sample"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def over(noise: Brownian, start: float, stop: float, rows: int, number: int = 0) -> Tensor:
    """W over a part of the segment [0, 1]: (B, 1)."""
    device = torch.device("cpu")
    return BrownianTree(noise, 0.0, 1.0, 1, number=number)(start, stop, batch=rows, dtype=F64, device=device).w


def solved(sde: SDE, tol: float, rows: int = 300, method: str = "heun", batching: str = "per_sample") -> Solution:
    """From 1 to time 1."""
    solver = AdaptiveStochastic(method, rtol=tol, atol=tol, batching=batching)
    return solve(sde, torch.ones(rows, 1, dtype=F64), tensor(0.0, 1.0), solver=solver, noise=Brownian(5))


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
@pytest.mark.parametrize(
    ("method", "sde_type", "bound"),
    [("heun", "ito", 0.05), ("heun", "stratonovich", 0.1), ("midpoint", "ito", 0.05), ("midpoint", "stratonovich", 0.1),
     ("milstein", "stratonovich", 0.4)],
)  # fmt: skip
def test_the_error_falls_with_the_tolerance(method, sde_type, bound, noise_type):
    """Of geometric Brownian motion, against the exact solution on the same path."""
    drift = 0.3 - (0.5 * 0.8**2 if sde_type == "ito" else 0.0)
    exact = torch.exp(drift + 0.8 * over(Brownian(5), 0.0, 1.0, 300))
    errors = [
        (solved(Growth(sde_type, noise_type), tol, method=method).ys[:, -1] - exact).square().mean().sqrt().item()
        for tol in (3e-2, 3e-3)
    ]
    assert errors[1] < errors[0] / (6 if PAIRS[method].parts == 1 else 2)
    assert errors[0] < bound
