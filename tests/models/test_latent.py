"""Latent models: shapes, gradients, blindness, keyed draws, forecasts by the prior, and the bound against the truth."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from ndeflow.contracts import Batch, DataSpec
from ndeflow.metrics import gaussian_nll
from ndeflow.models.coder import Inference, gaussian_kl
from ndeflow.models.latent import LatentModel, LatentODE, LatentSDE
from ndeflow.models.posterior import PathKL, PosteriorSDE
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.tasks import Variational
from tests.models.series import irregular_batch, take

SMALL = {"latent": 3, "hidden": 4, "width": 8, "draws": 2, "eval_draws": 3}
MODELS = {
    "sde": lambda **k: LatentSDE(2, solver=Stochastic("euler", 2), **{**SMALL, **k}),
    "ode": lambda **k: LatentODE(2, solver=FixedRungeKutta("rk4"), **{**SMALL, **k}),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(1)
    return MODELS[request.param]()


def answer(model, batch, seed=3):
    model.reseed(seed)
    return model(batch)


def test_an_answer_has_a_mean_a_draw_and_a_divergence(model):
    batch = irregular_batch()
    for training, draws in ((True, 2), (False, 3)):
        output = model.train(training)(batch)
        assert output.prediction.shape == output.mean.shape == (draws, *batch.ys.shape) and output.draws
        assert output.kl.shape == (5,) and (output.kl >= 0).all() and output.std.shape == (2,)
    rows = output.of(torch.tensor([1, 4]))
    assert torch.equal(rows.mean, output.mean[:, [1, 4]]) and torch.equal(rows.kl, output.kl[[1, 4]])


def test_checkpointed_gradients_are_the_direct_ones(model):
    batch, grads = irregular_batch(), []
    for adjoint in (Direct(), Checkpointed()):
        twin = copy.deepcopy(model).double()
        twin.adjoint = adjoint
        output = answer(twin, batch._replace(ys=batch.ys.double()))
        (output.mean.square().mean() + output.kl.mean()).backward()
        grads.append([p.grad for p in twin.parameters() if p.grad is not None])
    for direct, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, direct, rtol=1e-10, atol=1e-12)


def test_one_draw_is_no_dimension_of_the_prediction():
    output = MODELS["sde"](draws=1)(irregular_batch())
    assert output.prediction.shape == output.mean.shape[1:] and not output.draws


def test_every_parameter_gets_a_finite_gradient(model):
    output = model(irregular_batch())
    (output.prediction.square().mean() + output.kl.mean()).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


def test_unseen_values_never_change_the_answer(model):
    batch = irregular_batch()
    blind = batch._replace(ys=torch.where(batch.seen, batch.ys, torch.nan))
    expected, found = answer(model, batch), answer(model, blind)
    assert torch.equal(found.prediction, expected.prediction) and torch.equal(found.kl, expected.kl)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(model):
    batch = irregular_batch()
    together, alone = answer(model, batch), answer(model, take(batch, [2]))
    torch.testing.assert_close(alone.prediction[:, 0], together.prediction[:, 2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.kl, together.kl[2:3], rtol=1e-5, atol=1e-6)


def test_draws_differ_and_repeat_with_the_seed(model):
    first, again, other = (answer(model, irregular_batch(), seed) for seed in (1, 1, 2))
    assert torch.equal(first.prediction, again.prediction) and not torch.equal(first.mean, other.mean)
    assert (first.mean[0] - first.mean[1]).abs().max() > 1e-3


def test_the_start_is_drawn_from_its_posterior():
    torch.manual_seed(0)
    model, batch = MODELS["ode"](draws=4000).double(), irregular_batch(rows=1)
    batch = batch._replace(ys=batch.ys.double())
    posterior, starts = model.coder(batch), model(batch).solutions[0].problem.y0
    error = 5 / math.sqrt(len(starts))
    assert ((starts.mean(dim=0) - posterior.mean[0]) / posterior.std[0]).abs().max() < error
    assert (starts.std(dim=0) / posterior.std[0] - 1).abs().max() < error


def test_inputs_are_known_to_the_encoder():
    torch.manual_seed(0)
    model, batch = MODELS["sde"](inputs=2), irregular_batch()
    one, other = (answer(model, batch._replace(inputs=torch.full((5, 2), x))) for x in (0.0, 1.0))
    assert (one.kl - other.kl).abs().min() > 1e-4


def test_beyond_the_last_seen_time_the_prior_drives():
    torch.manual_seed(0)
    model, batch = MODELS["sde"](), irregular_batch()
    seen = batch.seen.clone()
    seen[:, 3:] = False
    integral = answer(model, batch._replace(seen=seen)).solutions[0].integrals[..., 0]
    last = seen.any(-1).long().mul(torch.arange(7)).amax(1).repeat(2)
    arrived = integral.gather(1, last[:, None])
    assert (arrived[last > 0] > 0).all()
    torch.testing.assert_close(integral[:, -1:], arrived, rtol=1e-4, atol=1e-6)  # h + 0 - h, in float32


RATE, SIGMA, NOISE, END = 0.7, 0.9, 0.5, 1.0


class Bridge(PosteriorSDE):
    """An Ornstein-Uhlenbeck prior and, with strength 1, its exact posterior given one observation x at time END.

    f = h + strength sigma^2 d/dz log N(x; z e^(-a s), NOISE^2 + v(s)), s = END - t, v(s) the prior's variance after s.
    """

    def __init__(self, strength: float) -> None:
        super().__init__(1)
        self.strength = strength

    def drift(self, t, y, x):
        decay = torch.exp(-RATE * (END - t))
        variance = NOISE**2 + SIGMA**2 * (1 - decay**2) / (2 * RATE)
        return self.prior(t, y) + self.strength * SIGMA**2 * decay * (x - y * decay) / variance

    def prior(self, t, y):
        return -RATE * y

    def diffusion(self, t, y, *context):
        return torch.full_like(y, SIGMA)


class Exact(nn.Module):
    """z0 ~ N(0, 1), its posterior given y ~ N(z(END), NOISE^2); the decoder is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.log_std = nn.Identity(), torch.full((1,), math.log(NOISE), dtype=torch.float64)

    def forward(self, batch):
        decay = math.exp(-RATE * END)
        noise = NOISE**2 + SIGMA**2 * (1 - decay**2) / (2 * RATE)
        variance = 1 / (1 + decay**2 / noise)
        mean = variance * decay / noise * batch.ys[:, -1]
        return Inference(mean, torch.full_like(mean, math.sqrt(variance)), batch.ys)

    def start_kl(self, posterior):
        return gaussian_kl(posterior.mean, posterior.std, torch.zeros(()), torch.ones(()))


class LinearGaussian(LatentModel):
    """A model whose likelihood is known."""

    def __init__(self, strength: float) -> None:
        super().__init__(1, inputs=0, latent=1, hidden=1, width=1, draws=2000, eval_draws=2000,
                         solver=Stochastic("euler", 100), adjoint=None)  # fmt: skip
        self.coder, self.sde, self.path_kl = Exact(), Bridge(strength), PathKL()

    @property
    def dynamics(self):
        return self.sde

    @property
    def integrands(self):
        return ((self.path_kl, None),)

    def context(self, batch, codes):
        return codes[:, -1]


def observed_at_the_end(*values):
    ys = torch.tensor([[[0.0], [x]] for x in values], dtype=torch.float64)
    mask = torch.zeros_like(ys, dtype=torch.bool)
    mask[:, 1] = True
    ts = torch.tensor([0.0, END], dtype=torch.float64).expand(len(values), -1)
    return Batch(ts, ys, mask, mask, None, None, torch.arange(len(values)))


@pytest.mark.parametrize(("strength", "gap"), [(1.0, 0.02), (0.5, None), (0.0, None)])
def test_the_bound_lies_below_the_exact_likelihood_and_reaches_it_with_the_exact_posterior(strength, gap):
    values = (1.3, -2.0)
    variance = NOISE**2 + math.exp(-2 * RATE) + SIGMA**2 * (1 - math.exp(-2 * RATE)) / (2 * RATE)
    x = torch.tensor(values, dtype=torch.float64)
    exact = -gaussian_nll(torch.zeros(()), torch.tensor(variance).sqrt(), x).mean()
    model, batch = LinearGaussian(strength), observed_at_the_end(*values)
    task = Variational(model, torch.optim.SGD)
    task.spec = DataSpec(("y",), (0.0,), (1.0,))
    below = (exact + task.loss(model(batch), batch)).item()
    assert abs(below) < gap if gap is not None else below > 0.05
