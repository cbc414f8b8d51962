"""Likelihoods in the data's own units, and their pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ndeflow.contracts import DataSpec, Output
from ndeflow.metrics import Averages
from ndeflow.models import NormalizingFlow
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.tasks import DensityEstimation
from tests.models.test_flow import batch_of, flow, points

SPEC = DataSpec(channels=("a", "b"), mean=(10.0, 20.0), std=(2.0, 4.0))


def task(model: NormalizingFlow | None = None) -> DensityEstimation:
    made = DensityEstimation(model or flow(), torch.optim.SGD)
    made.spec = SPEC
    return made


def test_the_loss_is_the_negative_log_likelihood_in_the_datas_units():
    """p(x) of x = mean + std z is p(z) / (2 * 4)."""
    made, batch = task(), batch_of(points())
    output = made.model(batch)
    want = -(output.prediction - math.log(8)).mean()
    torch.testing.assert_close(made.loss(output, batch), want)
    averages = Averages()
    averages.add(made.metrics(output, batch))
    found = averages.compute()
    assert found["nll"] == pytest.approx(want.item(), rel=1e-6)
    assert found["bits_per_dimension"] == pytest.approx(want.item() / (2 * math.log(2)), rel=1e-6)


def test_the_likelihood_of_other_units_differs_by_their_volume():
    """Standardised or not, the same density has the same likelihood: points scaled by 2 and 4 lose log 8 nats."""
    batch, plain = batch_of(points()), task()
    output = plain.model(batch)
    plain.spec = DataSpec(channels=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0))
    before = plain.loss(output, batch)
    plain.spec = SPEC
    torch.testing.assert_close(plain.loss(output, batch) - before, torch.tensor(math.log(8), dtype=torch.float64))


def test_pictures_show_data_samples_and_density_over_one_square():
    made = task(flow(solver=RungeKutta(rtol=1e-4, atol=1e-4, compile="off")))
    batch = batch_of(points(400))
    with torch.no_grad():
        figure = made.figures(made.model(batch), batch)["density"]
    panels = figure.axes[:3]
    assert [panel.get_title("left") for panel in panels] == ["data", "samples of the model", "density of the model"]
    images = [panel.images[0] for panel in panels]
    left, right, low, high = images[0].get_extent()
    assert left < 10 < right and low < 20 < high
    density = np.asarray(images[2].get_array())
    assert density.mean() * (right - left) * (high - low) == pytest.approx(1.0, abs=0.05)
    figure.canvas.draw()


def test_other_than_two_channels_have_no_picture():
    torch.manual_seed(0)
    made = task(NormalizingFlow(3, width=4, depth=1).double())
    batch = batch_of(torch.randn(4, 3, dtype=torch.float64))
    assert made.figures(made.model(batch), batch) == {}


def test_a_prediction_that_is_no_density_is_refused():
    with pytest.raises(ValueError, match=r"expected log-densities \(B,\) .* use model=normalizing_flow"):
        task().loss(Output(torch.zeros(4, 1, 2)), batch_of(points()))
