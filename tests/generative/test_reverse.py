"""Reverse equations: exact scores give back the data by either, wrong ones a gap that is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ndeflow.generative.reverse import ProbabilityFlow, ReverseSDE, diffuse_back, flow_back, geometric, prior_sample
from ndeflow.generative.schedules import OrnsteinUhlenbeck
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solve import solve
from tests.generative.diffusions import F64, SCHEDULES, Bell, gaussian, places, three

TIGHT = RungeKutta(rtol=1e-9, atol=1e-9, compile="off")
UNTIL_TWO = OrnsteinUhlenbeck(t_min=1e-3, t_max=2.0)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def bell(d: float) -> Bell:
    """The variance .5 - .46 e^-2t of data N(0, .04), disturbed."""
    return Bell(UNTIL_TWO, lambda t: 0.5 - 0.46 * (-2 * t).exp() * (1 + d * (3 * t).sin()))


def variances(model: Bell, end: float) -> Tensor:
    """(2,): of the flow and of the reverse SDE at `end`, both from v(2), by the equations of their variances."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        pull = y.new_tensor([0.5, 1.0]) / model.variance(t) - 1
        return 2 * pull * y - y.new_tensor([0.0, 1.0])

    start = model.variance(torch.tensor([[2.0, 2.0]], dtype=F64))
    return solve(field, start, torch.tensor([2.0, end], dtype=F64), solver=TIGHT).ys[0, -1]


@pytest.mark.parametrize(
    ("d", "flow", "sde", "gap"),
    [
        (0.0, 0.04, 0.04, 0.0),
        (0.05, 0.0352, 0.0379, 0.0069),
        (0.1, 0.0307, 0.0359, 0.0141),
        (0.2, 0.0225, 0.0323, 0.0296),
    ],
)
def test_a_wrong_normal_density_gives_flow_and_sde_the_variances_that_are_known(d, flow, sde, gap) -> None:
    """W2 of N(0, a) and N(0, b) is |sqrt(a) - sqrt(b)|."""
    model = bell(d)
    found = variances(model, 0.0)
    torch.testing.assert_close(found, torch.tensor([flow, sde], dtype=F64), rtol=0, atol=6e-5)
    assert abs(float(found.sqrt().diff())) == pytest.approx(gap, abs=6e-5)
    want = variances(model, UNTIL_TWO.t_min)
    start = model.variance(torch.tensor(2.0, dtype=F64)).sqrt()
    end = flow_back(model, start.view(1, 1), solver=TIGHT).ys[0, -1, 0]
    assert float(end.square()) == pytest.approx(float(want[0]), rel=1e-6)
    draws = prior_sample(UNTIL_TWO, 60_000, 1, 5, like=start) / UNTIL_TWO.prior_std * start
    spread = diffuse_back(model, draws, steps=60, seed=1).var()
    assert float(spread) == pytest.approx(float(want[1]), rel=4 * (2 / 60_000) ** 0.5 + 2e-3)


def test_the_gap_is_linear_in_the_error_of_the_density() -> None:
    gaps = [float(variances(bell(d), 0.0).sqrt().diff()) / d for d in (0.002, 0.001)]
    assert gaps[0] == pytest.approx(gaps[1], rel=3e-3) and gaps[1] > 0.1


@schedules
def test_the_flow_of_normal_data_is_a_scaling(schedule) -> None:
    """x_t - alpha m grows as the standard deviation of p_t does."""
    model = gaussian(schedule)
    _, x = places(schedule, 8)
    alpha, sigma, *_ = schedule(geometric(schedule, 1, like=x))
    std, centre = (0.49 * alpha.square() + sigma.square()).sqrt(), alpha[:, None] * model.means
    want = centre[1] + (x - centre[0]) * std[1] / std[0]
    torch.testing.assert_close(flow_back(model, x, solver=TIGHT).ys[:, -1], want, rtol=1e-6, atol=1e-6)


@schedules
def test_both_equations_give_the_moments_of_a_mixture(schedule) -> None:
    model, count = three(schedule), 8000
    x = prior_sample(schedule, count, 2, 3, like=model.means)
    share = model.weights[:, None]
    mean = (share * model.means).sum(dim=0)
    second = (share * (model.means.square() + model.stds.square()[:, None])).sum(dim=0)
    for samples in (flow_back(model, x).ys[:, -1], diffuse_back(model, x, steps=100, seed=2)):
        error = 4 * second.sqrt() / math.sqrt(count) + 0.03  # the prior is not quite p_t at t_max
        assert bool(((samples.mean(dim=0) - mean).abs() < error).all())
        assert bool(((samples.square().mean(dim=0) / second - 1).abs() < 0.08).all())


@schedules
def test_the_flow_and_the_drift_are_those_of_the_papers(schedule) -> None:
    """At 0-dim times too, as solvers give them."""
    model, (t, x) = three(schedule), places(schedule, 5)
    t = t[:1].expand(5, 1)
    f, g_squared = schedule.coefficients(t)
    torch.testing.assert_close(ProbabilityFlow(model)(t[0, 0], x), f * x - g_squared / 2 * model.score(t, x))
    sde = ReverseSDE(model, 2)
    drift, diffusion = sde(-t[0, 0], x)
    torch.testing.assert_close(drift, g_squared * model.score(t, x) - f * x)
    torch.testing.assert_close(diffusion, g_squared.sqrt().expand(5, 2))


def test_samples_are_functions_of_their_seeds() -> None:
    model, like = gaussian(UNTIL_TWO), torch.zeros(())
    x = prior_sample(UNTIL_TWO, 5, 2, 1, like=like)
    assert x.dtype == torch.float32 and torch.equal(x, prior_sample(UNTIL_TWO, 5, 2, 1, like=like))
    first, again, other = (diffuse_back(model, x.double(), steps=5, seed=k) for k in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
