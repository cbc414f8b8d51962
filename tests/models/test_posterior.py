"""The divergence of paths against closed forms: Ornstein-Uhlenbeck, equal drifts, both calculi."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.models.posterior import PathKL, PosteriorSDE, SteeredSDE
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.paths import Piecewise
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic

RATE, LEVEL, SIGMA = 0.8, 1.5, 0.6


class OrnsteinUhlenbeck(PosteriorSDE):
    """Prior dz = -rate z dt + sigma dW; the posterior returns to `level` at a rate of its own."""

    def __init__(self, rate: float, level: float, sde_type: str = "ito") -> None:
        super().__init__(1, sde_type=sde_type)
        self.rate, self.level = rate, level

    def drift(self, t, y):
        return self.rate * (self.level - y)

    def prior(self, t, y):
        return -RATE * y

    def diffusion(self, t, y):
        return torch.full_like(y, SIGMA)


def divergence(sde, rows, steps, solver=None, context=None, start=0.0):
    """(rows,): the integral to time 1 along each path."""
    y0, ts = (
        torch.full((rows, sde.noise_size), start, dtype=torch.float64),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
    )
    integrands, noise = ((PathKL(), None),), Brownian(7)
    solver = solver or Stochastic("euler", steps)
    solution = solve(sde, y0, ts, solver=solver, context=context, integrands=integrands, noise=noise)
    return solution.integrals[:, -1, 0]


def test_a_shifted_level_has_the_divergence_of_its_constant_drift_whatever_the_path():
    found = divergence(OrnsteinUhlenbeck(RATE, LEVEL), rows=3, steps=10)
    expected = torch.full((3,), (RATE * LEVEL / SIGMA) ** 2 / 2, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("sde_type", "method"), [("ito", "euler"), ("ito", "milstein"), ("stratonovich", "milstein")])
def test_another_rate_has_the_closed_form_of_ornstein_and_uhlenbeck(sde_type, method):
    """With e = f - h = (RATE - rate) z and z from 0, E z^2 = SIGMA^2 (1 - exp(-2 rate t)) / (2 rate)."""
    rate, rows = 2.0, 4000
    exact = (RATE - rate) ** 2 / (4 * rate) * (1 - (1 - math.exp(-2 * rate)) / (2 * rate))
    found = divergence(OrnsteinUhlenbeck(rate, 0.0, sde_type), rows, 100, Stochastic(method, 100))
    error = 4 * found.std().item() / math.sqrt(rows)
    assert abs(found.mean().item() - exact) < error + 0.02 * exact  # of the draws, and of steps of 1 / 100
    assert error < 0.1 * exact


class Geometric(PosteriorSDE):
    """dz = rate z dt + SIGMA z dW beside a prior with RATE, in Ito's sense, written in either."""

    def drift(self, t, y):
        return self.corrected(LEVEL, y)

    def prior(self, t, y):
        return self.corrected(RATE, y)

    def diffusion(self, t, y):
        return SIGMA * y

    def corrected(self, rate, y):
        return (rate - (self.sde_type == "stratonovich") * SIGMA**2 / 2) * y


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_the_divergence_is_the_same_in_both_calculi(sde_type):
    found = divergence(Geometric(1, sde_type=sde_type), 3, 10, Stochastic("milstein", 10), start=1.0)
    expected = torch.full((3,), ((LEVEL - RATE) / SIGMA) ** 2 / 2, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_equal_drifts_have_no_divergence():
    assert (divergence(OrnsteinUhlenbeck(RATE, 0.0), rows=5, steps=10) == 0).all()


def test_a_steered_path_diverges_by_the_square_of_its_steering_and_not_where_it_is_not_steered():
    torch.manual_seed(0)
    sde, knots = SteeredSDE(2, inputs=3, width=8).double(), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    with torch.no_grad():
        for parameter in sde.steering.parameters():
            parameter.zero_()
        sde.steering.layers[-1].bias.copy_(torch.tensor([1.0, -2.0]))
    code = torch.randn(4, 2, 4, dtype=torch.float64)
    code[:, :, -1] = torch.tensor([1.0, 0.0])  # steered in the first half alone
    found = divergence(sde, rows=4, steps=5, context=Piecewise(knots, (code,)))
    torch.testing.assert_close(found, torch.full((4,), 0.5 * 0.5 * 5.0, dtype=torch.float64), rtol=1e-10, atol=0)


def test_the_diffusion_stays_between_its_bounds_and_the_drift_of_the_prior_below_one():
    sde, y = SteeredSDE(2, inputs=1, width=8, scale=0.5).double(), torch.linspace(-1e4, 1e4, 40).double().view(-1, 2)
    spread = sde.diffusion(torch.tensor(0.0), y)
    assert (spread >= 0.005).all() and (spread <= 0.5).all()
    assert (sde.prior(torch.tensor(0.0), y).abs() <= 1).all()


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="expected a positive scale"):
        SteeredSDE(2, inputs=1, scale=0.0)
