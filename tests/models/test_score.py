"""Models of scores: how points are noised, and what networks are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.generative.schedules import OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from ndeflow.generative.weightings import LikelihoodWeighting, VarianceWeighting
from ndeflow.models import NeuralPotential, NeuralScore
from ndeflow.models.score import ScoreModel

KINDS = [NeuralScore, NeuralPotential]
SCHEDULES = [OrnsteinUhlenbeck(), VariancePreserving(), VarianceExploding()]


def batch(rows: int, dtype: torch.dtype = torch.float64) -> Batch:
    ys = torch.randn(rows, 1, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ys, dtype=torch.bool)
    return Batch(torch.zeros(rows, 1, dtype=torch.float64), ys, mask, mask, None, None, torch.arange(rows))


def model(kind: type[ScoreModel], schedule=SCHEDULES[0], **options) -> ScoreModel:
    torch.manual_seed(2)
    return kind(2, schedule, width=8, depth=2, **options).double()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_points_are_noised_as_the_schedule_says(kind, schedule, training) -> None:
    made, given = model(kind, schedule).train(training), batch(4000)
    out = made(given)
    alpha, sigma, *_ = schedule(out.t)
    torch.testing.assert_close(out.x_t, alpha * given.ys[:, 0] + sigma * out.noise)
    torch.testing.assert_close(out.prediction, made.score(out.t, out.x_t))
    u = ((out.t - schedule.t_min) / (schedule.t_max - schedule.t_min)).sqrt()
    assert 0 <= u.min() and u.max() <= 1 and abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005
    assert out.noise.mean().abs() < 0.05 and abs(out.noise.std() - 1) < 0.05
    assert abs(torch.corrcoef(torch.cat([out.t, out.noise], dim=1).T)[0, 1:]).max() < 0.06


def test_evaluations_repeat_however_rows_are_cut_into_batches() -> None:
    made, given = model(NeuralScore).eval(), batch(10)
    whole, part = made(given), made(given.of(torch.tensor([7, 3])))
    assert torch.equal(part.x_t, whole.x_t[[7, 3]]) and torch.equal(part.t, whole.t[[7, 3]])
    assert torch.equal(whole.of(torch.tensor([7, 3])).noise, part.noise)
    made.reseed(1)
    assert not torch.equal(made(given).t, whole.t)
    made.train()
    torch.manual_seed(3)
    first = made(given).x_t
    torch.manual_seed(3)
    assert torch.equal(made(given).x_t, first) and not torch.equal(made(given).x_t, first)


def test_the_score_of_a_potential_is_its_gradient() -> None:
    made, x = model(NeuralPotential), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    t = torch.rand(5, 1, dtype=torch.float64)
    want = torch.autograd.grad(made.potential(t, x).sum(), x)[0]
    torch.testing.assert_close(made.score(t, x), want)
    with torch.no_grad():
        torch.testing.assert_close(made.score(t[0, 0], x[:1]), want[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_copied_with_its_flow(kind) -> None:
    made = copy.deepcopy(model(kind))
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    want = made.dynamics(t, x)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    torch.testing.assert_close(made.dynamics(t, x), -x)
    assert not torch.equal(want, -x)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_matters_and_single_precision_serves(kind) -> None:
    made = kind(2, SCHEDULES[0], width=8, depth=2)
    made(batch(4, torch.float32)).prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_straight_activations_are_refused(kind) -> None:
    for activation in (nn.ReLU, nn.LeakyReLU, nn.Hardtanh):
        with pytest.raises(ValueError, match=f"expected a smooth activation, got {activation.__name__}"):
            model(kind, activation=activation)
    for activation in (nn.Tanh, nn.SiLU, nn.Softplus, nn.GELU):
        model(kind, activation=activation)
    with pytest.raises(ValueError, match="expected a positive time_power, got 0"):
        model(kind, time_power=0.0)


def test_weightings_are_those_of_the_papers() -> None:
    t: Tensor = torch.tensor([[0.2], [0.9]])
    for schedule in SCHEDULES:
        torch.testing.assert_close(VarianceWeighting().weight(schedule, t), schedule(t).sigma ** 2)
    torch.testing.assert_close(LikelihoodWeighting().weight(SCHEDULES[1], t), 0.1 + 19.9 * t)
