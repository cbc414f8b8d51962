"""Losses of series against their formulas; masked values never count."""

import math

import pytest
import torch

from ndeflow.contracts import DataSpec, Gaussian, Output
from ndeflow.metrics import Averages
from ndeflow.tasks.losses import CRPS, GaussianNLL, LogSquaredError, SquaredError, average

SPEC = DataSpec(channels=("a", "b"), mean=(10.0, 20.0), std=(2.0, 4.0))


def example():
    generator = torch.Generator().manual_seed(0)
    prediction, ys = (torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = (torch.rand(3, 5, 2, generator=generator) < 0.6).to(ys.dtype)
    return prediction, ys, weights


def test_average_ignores_what_is_not_marked():
    values = torch.tensor([1.0, math.nan, 3.0])
    assert average(values, torch.tensor([1.0, 0.0, 1.0])) == 2.0


def test_average_of_nothing_is_zero():
    assert average(torch.tensor([math.nan]), torch.zeros(1)) == 0.0


def test_squared_error_is_the_mean_over_marked_values():
    prediction, ys, weights = example()
    expected = ((prediction - ys) ** 2)[weights > 0].mean()
    torch.testing.assert_close(SquaredError()(Output(prediction), ys, weights, SPEC), expected)


def test_rmse_is_reported_in_data_units():
    prediction, ys, weights = example()
    averages = Averages()
    averages.add(SquaredError().metrics(Output(prediction), ys, weights, SPEC))
    values = averages.compute()
    error = (prediction - ys) * torch.tensor(SPEC.std, dtype=torch.float64)
    assert values["rmse"] == pytest.approx(error[weights > 0].square().mean().sqrt().item())
    assert values["z/rmse"] == pytest.approx((prediction - ys)[weights > 0].square().mean().sqrt().item())


def test_errors_in_large_units_are_squared_in_double_precision():
    prediction, ys, weights = (x.float() for x in example())
    spec = DataSpec(channels=("a", "b"), mean=(0.0, 0.0), std=(1e30, 1e30))
    averages = Averages()
    averages.add(SquaredError().metrics(Output(prediction), ys, weights, spec))
    values = averages.compute()
    assert values["rmse"] == pytest.approx(1e30 * values["z/rmse"], rel=1e-5) and values["z/rmse"] > 0


def test_log_error_is_relative_and_in_data_units():
    ys = torch.zeros(1, 2, 2)
    prediction = (torch.tensor(SPEC.mean) * math.e - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
    loss = LogSquaredError()(Output(prediction.expand(1, 2, 2)), ys, torch.ones_like(ys), SPEC)
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_crps_of_draws_from_the_truth_matches_the_gaussian_closed_form():
    draws = torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ys = torch.zeros(1, 1, 1, dtype=torch.float64)
    loss = CRPS()(Output(draws, draws=True), ys, torch.ones_like(ys), SPEC)
    assert loss.item() == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi), abs=0.02)


def test_crps_refuses_a_single_prediction():
    ys = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="expected at least two draws"):
        CRPS()(Output(ys), ys, ys, SPEC)


def test_the_normal_likelihood_is_of_densities_in_data_units():
    prediction, ys, weights = example()
    std = prediction.exp()
    output = Gaussian(prediction, std=std)
    scale = torch.tensor(SPEC.std, dtype=torch.float64)
    normal = torch.distributions.Normal(prediction * scale, std * scale)
    expected = -normal.log_prob(ys * scale)[weights > 0].mean()
    averages = Averages()
    averages.add(GaussianNLL().metrics(output, ys, weights, SPEC))
    assert averages.compute()["nll"] == pytest.approx(expected.item())
    inside = (normal.cdf(ys * scale) - 0.5).abs() <= 0.45
    assert averages.compute()["coverage90"] == pytest.approx(inside[weights > 0].double().mean().item())
    own = -torch.distributions.Normal(prediction, std).log_prob(ys)[weights > 0].mean()
    torch.testing.assert_close(GaussianNLL()(output, ys, weights, SPEC), own)


def test_the_normal_likelihood_needs_a_standard_deviation():
    prediction, ys, weights = example()
    with pytest.raises(ValueError, match="expected normal distributions for GaussianNLL"):
        GaussianNLL()(Output(prediction), ys, weights, SPEC)
