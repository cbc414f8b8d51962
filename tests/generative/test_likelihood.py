"""Log-densities by the probability flow, against those that are known."""

from __future__ import annotations

import pytest
import torch

from ndeflow.generative.likelihood import log_likelihood
from ndeflow.generative.reverse import flow_back, prior_sample
from ndeflow.generative.schedules import OrnsteinUhlenbeck, VariancePreserving
from ndeflow.numerics.derivatives import HutchinsonDivergence
from ndeflow.numerics.explicit import RungeKutta
from tests.generative.diffusions import gaussian, places, three

TIGHT = RungeKutta(rtol=1e-8, atol=1e-8, compile="off")
LONG = [VariancePreserving(t_min=1e-4), OrnsteinUhlenbeck(t_min=1e-4, t_max=12.0)]  # whose end is the prior
schedules = pytest.mark.parametrize("schedule", LONG, ids=lambda s: type(s).__name__)


@schedules
@pytest.mark.parametrize("law", [gaussian, three])
def test_exact_scores_give_exact_densities(schedule, law) -> None:
    """Of p at t_min; VP ends with alpha = e^-5.05 of the data left, and so a thousandth away."""
    model, x = law(schedule), places(schedule, 40)[1]
    x = 0.8 * x / x.std()
    found = log_likelihood(model, x, solver=TIGHT)
    want = model.potential(x.new_tensor([[schedule.t_min]]).expand(40, 1), x)
    assert (want - want.mean()).abs().max() > 0.5
    torch.testing.assert_close(found, want, rtol=0, atol=2e-2 if isinstance(schedule, VariancePreserving) else 1e-4)


def test_the_law_of_the_flow_is_meant_even_where_the_score_is_not_exact() -> None:
    """Of a linear flow x -> c x, log N(x / c; prior) - d log c."""
    schedule = OrnsteinUhlenbeck()
    model = gaussian(schedule)
    model.means.zero_()
    z = prior_sample(schedule, 5, 2, 1, like=model.stds)
    x = flow_back(model, z, solver=TIGHT).ys[:, -1]
    scale = x[0, 0] / z[0, 0]
    normal = torch.distributions.Normal(0.0, schedule.prior_std).log_prob(z).sum(dim=1)
    torch.testing.assert_close(log_likelihood(model, x, solver=TIGHT), normal - 2 * scale.log(), rtol=1e-6, atol=1e-6)


def test_probes_estimate_the_density_without_bias() -> None:
    schedule, count = OrnsteinUhlenbeck(t_min=0.1), 2000
    model = three(schedule)
    x = x0 = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    torch.manual_seed(0)
    solver = RungeKutta(rtol=1e-5, atol=1e-5, compile="off")
    found = log_likelihood(model, x0.expand(count, 2).clone(), solver=solver, divergence=HutchinsonDivergence())
    exact = log_likelihood(model, x, solver=solver)
    assert found.std() > 0.01 and abs(found.mean() - exact) < 4 * found.std() / count**0.5
