"""Weak orders by regression, without chance: of linear equations the moments of a step are Gauss-Hermite sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE
from ndeflow.numerics.stochastic import Stochastic
from tests.numerics.sdes import METHODS, Growth, OrnsteinUhlenbeck, tensor

F64 = torch.float64
STEPS = (8, 16, 32, 64)
NODES, WEIGHTS = (torch.as_tensor(x) for x in np.polynomial.hermite_e.hermegauss(12))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def step(sde: SDE, method: str, start: float, h: float) -> Tensor:
    """y after a step from `start`, for each node as its normal."""
    y0 = torch.full((len(NODES), 1), start, dtype=F64)
    problem = Problem(sde, y0, tensor(0.0, 1.0), noise=Brownian(0))
    return Stochastic(method).step(problem, tensor(0.0)[0], y0, tensor(h)[0], noise=NODES[:, None]).y[:, 0]


def order(errors: list[float]) -> float:
    """The power of the step size that the errors follow."""
    return float(np.polyfit(np.log(1 / np.array(STEPS)), np.log(np.abs(errors)), 1)[0])


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
@pytest.mark.parametrize(("method", "sde_type"), METHODS)
@pytest.mark.parametrize("power", [1, 2])
def test_moments_of_geometric_brownian_motion(power, method, sde_type, noise_type):
    """y_n is a product of independent factors: E y_n^p is a power of a factor's. Weak order 1."""
    rate = 0.3 if sde_type == "ito" else 0.3 + 0.5 * 0.8**2
    exact = math.exp(power * rate + 0.5 * power * (power - 1) * 0.8**2)
    factors = [step(Growth(sde_type, noise_type), method, 1.0, 1 / n) for n in STEPS]
    errors = [float((WEIGHTS * r**power).sum()) ** n - exact for r, n in zip(factors, STEPS, strict=True)]
    assert abs(order(errors) - 1) < 0.25


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize(("method", "wanted"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_mean_and_variance_of_an_ornstein_uhlenbeck_process(method, wanted, sde_type):
    """y' = a y + b xi: E y_n = a^n, Var y_n = b^2 (1 - a^2n) / (1 - a^2). Weak order 1, of Heun and midpoint 2."""
    means, variances = [], []
    for n in STEPS:
        a = float((WEIGHTS * step(OrnsteinUhlenbeck(sde_type), method, 1.0, 1 / n)).sum())
        b2 = float((WEIGHTS * step(OrnsteinUhlenbeck(sde_type), method, 0.0, 1 / n).square()).sum())
        means.append(a**n - math.exp(-1.5))
        variances.append(b2 * (1 - a ** (2 * n)) / (1 - a**2) - 0.49 * (1 - math.exp(-3)) / 3)
    assert abs(order(means) - wanted) < 0.25
    assert abs(order(variances) - wanted) < 0.25
