"""Schedules: their derivatives, the equation of the variance, accuracy near the data, priors."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.generative.schedules import OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solve import solve

F64 = torch.float64
SCHEDULES = [VariancePreserving(), VarianceExploding(), OrnsteinUhlenbeck()]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def times(schedule) -> torch.Tensor:
    return torch.linspace(schedule.t_min, schedule.t_max, 40, dtype=F64)


@each
def test_derivatives_are_those_of_autograd(schedule) -> None:
    t = times(schedule)
    _, _, d_alpha, d_sigma = schedule(t)
    for k, given in enumerate((d_alpha, d_sigma)):
        want = torch.func.vmap(torch.func.grad(lambda t, k=k: schedule(t)[k]))(t)
        torch.testing.assert_close(given, want, rtol=1e-11, atol=1e-12)


@each
def test_the_variance_solves_the_equation_of_the_forward_process(schedule) -> None:
    """d sigma^2 / dt = 2 f sigma^2 + g^2 and d alpha / dt = f alpha."""
    t = times(schedule)
    alpha, sigma, *_ = schedule(t)

    def field(t, y):
        f, g_squared = schedule.coefficients(t)
        return 2 * f * y + g_squared * y.new_tensor([0.0, 1.0])

    start = torch.stack([alpha[0].square(), sigma[0].square()])[None]
    ys = solve(field, start, t, solver=RungeKutta(rtol=1e-10, atol=1e-13, compile="off")).ys[0]
    torch.testing.assert_close(ys, torch.stack([alpha.square(), sigma.square()], dim=1), rtol=1e-7, atol=1e-11)


def test_the_diffusion_is_that_of_the_papers() -> None:
    t = torch.tensor([0.01, 0.4, 1.0], dtype=F64)
    torch.testing.assert_close(VariancePreserving().coefficients(t), (-(0.1 + 19.9 * t) / 2, 0.1 + 19.9 * t))
    f, g_squared = VarianceExploding().coefficients(t)
    assert not f.any()
    torch.testing.assert_close(g_squared, 2 * math.log(5000) * (0.01 * 5000**t).square())
    torch.testing.assert_close(OrnsteinUhlenbeck().coefficients(t), (-torch.ones_like(t), torch.ones_like(t)))


@pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=lambda s: type(s).__name__)
def test_the_variance_is_exact_close_to_the_data(schedule) -> None:
    """sigma^2 = g^2(0) t + O(t^2), where 1 - alpha^2 would keep four digits."""
    t, g_squared = torch.tensor(1e-12, dtype=F64), schedule.coefficients(torch.tensor(1e-9, dtype=F64)).g_squared
    assert float(schedule(t).sigma.square() / (g_squared * t)) == pytest.approx(1, abs=1e-6)


@each
def test_the_prior_is_the_law_of_noise_at_the_end(schedule) -> None:
    """That of OU is the stationary one, from which sigma at t_max = 3 is 0.12 percent away."""
    sigma = float(schedule(torch.tensor(schedule.t_max, dtype=F64)).sigma)
    assert sigma == pytest.approx(schedule.prior_std, rel=1.3e-3)


def test_times_must_be_in_order() -> None:
    for wrong in ((0.0, 1.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="expected times 0 < t_min < t_max"):
            OrnsteinUhlenbeck(*wrong)
