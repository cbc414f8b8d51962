"""The bound and the scores of the predictive mixture, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.contracts import Batch, DataSpec, GaussianOutput, LinearDecay, LinearWarmup, Output
from ndeflow.metrics import Averages
from ndeflow.models import LatentODE
from ndeflow.tasks import Variational
from ndeflow.tasks.variational import mixture_log_density
from tests.models.series import irregular_batch

SPEC = DataSpec(channels=("a", "b"), mean=(10.0, 20.0), std=(2.0, 4.0))


def task(**options) -> Variational:
    made = Variational(LatentODE(2, latent=2, hidden=3, width=4), torch.optim.SGD, **options)
    made.spec = SPEC
    return made


def answer(batch: Batch, draws: int = 3) -> GaussianOutput:
    mean = torch.randn(draws, *batch.ys.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    kl = torch.arange(len(batch.index), dtype=torch.float64)
    return GaussianOutput(mean + std, kl=kl, draws=True, mean=mean, std=std)


def scores(output: Output, batch: Batch) -> dict[str, float]:
    averages = Averages()
    averages.add(task().metrics(output, batch))
    return averages.compute()


def batch() -> Batch:
    made = irregular_batch()
    return made._replace(ys=made.ys.double())


def test_the_loss_is_the_negative_bound_a_value():
    data = batch()
    output = answer(data)
    logp = torch.distributions.Normal(output.mean, output.std).log_prob(data.ys)
    bound = (logp * data.mask).sum(dim=(2, 3)).mean(dim=0) - output.kl
    torch.testing.assert_close(task().loss(output, data), -bound.sum() / data.mask.sum())


def test_values_that_were_not_observed_do_not_count():
    data = batch()
    hidden = data._replace(ys=torch.where(data.mask, data.ys, torch.nan))
    output = answer(data)
    assert torch.equal(task().loss(output, hidden), task().loss(output, data))
    assert scores(output, hidden) == scores(output, data)


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.5, [0.5, 0.5]), (LinearWarmup(0.5), [0.0, 0.8]), (LinearDecay(1, 0), [1.0, 0.6])]
)
def test_the_divergence_is_weighted_in_training_and_whole_in_evaluation(weight, expected, monkeypatch):
    data, made = batch(), task(kl_weight=weight)
    output = answer(data)
    step = output.kl.sum() / data.mask.sum()
    whole = made.eval().loss(output, data)
    for progress, share in zip((0.0, 0.4), expected, strict=True):
        monkeypatch.setattr(Variational, "progress", progress)
        made.train().on_train_batch_start(data, 0)
        torch.testing.assert_close(made.loss(output, data), whole - (1 - share) * step)
        assert made.eval().loss(output, data) == whole


def test_log_likelihood_is_that_of_the_mixture_in_data_units():
    data = batch()
    output = answer(data)
    normal = torch.distributions.Normal(output.mean, output.std)
    density = normal.log_prob(data.ys).exp().mean(dim=0) / torch.tensor(SPEC.std, dtype=torch.float64)
    assert scores(output, data)["log_likelihood"] == pytest.approx(density.log()[data.scored].mean().item())


def test_one_draw_is_a_gaussian():
    data = batch()
    output = answer(data, draws=1)
    expected = torch.distributions.Normal(output.mean[0], output.std).log_prob(data.ys)
    torch.testing.assert_close(mixture_log_density(output, data.ys), expected)


def test_coverage_is_that_of_the_interval_of_a_gaussian():
    data, std = batch(), torch.ones(2, dtype=torch.float64)
    for distance, expected in ((1.64, 1.0), (1.65, 0.0)):
        output = GaussianOutput(data.ys, mean=(data.ys + distance)[None], std=std)
        found = scores(output, data)
        assert found["coverage90"] == expected
        assert found["z/rmse"] == pytest.approx(distance) and found["kl"] == 0.0


def test_figures_show_draws_and_their_calibration():
    data = batch()
    assert set(task().figures(answer(data), data)) == {"predictions", "calibration"}
    single = answer(data, draws=1)
    single.prediction, single.draws = single.prediction[0], False
    assert set(task().figures(single, data)) == {"predictions"}


def test_the_answer_of_another_model_is_refused():
    data = batch()
    with pytest.raises(ValueError, match="use model=latent_sde"):
        task().loss(Output(data.ys), data)


def test_warmup_reaches_its_end_and_stays():
    assert [LinearWarmup(0.25, 2.0).at(p) for p in (0.0, 0.125, 0.25, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="expected a share of the training"):
        LinearWarmup(0.0)
    assert math.isclose(LinearWarmup(1.0).at(0.5), 0.5)
