"""Every ready model: shapes, gradients, blindness to what it may not see, noise keyed by row."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from ndeflow.fields.cde import CDEField
from ndeflow.fields.dissipative import Dissipation
from ndeflow.fields.sde import DiagonalSDE
from ndeflow.fields.stable import Geometric, Langevin, LinearNoise
from ndeflow.models import (
    CDEClassifier,
    NeuralCDE,
    ODEClassifier,
    ODEForecaster,
    ODEInterpolator,
    PointClassifier,
    PointSDEClassifier,
    SDEClassifier,
    SDEForecaster,
    SpiralSDE,
    path_channels,
)
from ndeflow.numerics.adjoint import Checkpointed
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.rectilinear import Rectilinear
from ndeflow.numerics.splines import NaturalCubic
from ndeflow.numerics.stochastic import Stochastic
from tests.models.series import irregular_batch, take

SMALL = {"hidden": 4, "width": 8}


def sde(field, **options):
    return SDEClassifier(2, 3, field=field, draws=2, eval_draws=3, solver=Stochastic(), **SMALL, **options)


MODELS = {
    "cde": lambda **k: CDEClassifier(2, 3, solver=FixedRungeKutta("midpoint"), **SMALL, **k),
    "cde_counts": lambda **k: CDEClassifier(2, 3, counts=True, solver=FixedRungeKutta("rk4"), **SMALL, **k),
    "cde_rectilinear": lambda **k: CDEClassifier(
        2, 3, interpolation=Rectilinear.through, counts=True, solver=FixedRungeKutta("rk4"), **SMALL, **k
    ),
    "cde_natural": lambda **k: CDEClassifier(
        2, 3, interpolation=NaturalCubic.through, solver=FixedRungeKutta("rk4"), **SMALL, **k
    ),
    "ode": lambda **k: ODEClassifier(2, 3, solver=FixedRungeKutta("midpoint"), **SMALL, **k),
    "ode_adaptive": lambda **k: ODEClassifier(2, 3, **SMALL, **k),
    "sde": lambda **k: sde(None, **k),
    "langevin": lambda **k: sde(partial(Langevin, dissipation=Dissipation()), **k),
    "linear_noise": lambda **k: sde(LinearNoise, **k),
    "released": lambda **k: sde(partial(LinearNoise, released=True), **k),
    "geometric": lambda **k: sde(Geometric, **k),
    "log_geometric": lambda **k: sde(partial(Geometric, log_state=True), **k),
    "blind": lambda **k: sde(DiagonalSDE, blind=True, **k),
    "point_sde": lambda **k: PointSDEClassifier(2, 3, draws=2, eval_draws=3, solver=Stochastic(), **SMALL, **k),
    "spiral": lambda **k: SpiralSDE(2, width=8, draws=2, eval_draws=3, solver=Stochastic(), **k),
    "point": lambda **k: PointClassifier(2, 3, width=8, **k),
    "forecaster": lambda **k: ODEForecaster(2, **SMALL, **k),
    "interpolator": lambda **k: ODEInterpolator(2, **SMALL, **k),
    "sde_forecaster": lambda **k: SDEForecaster(2, draws=2, eval_draws=3, solver=Stochastic("euler", 2), **SMALL, **k),
}
SERIES = {"forecaster", "interpolator", "sde_forecaster", "spiral"}
DRAWN = {"sde", "langevin", "linear_noise", "released", "geometric", "log_geometric", "blind"}
STOCHASTIC = DRAWN | {"sde_forecaster", "point_sde", "spiral"}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def made(name, **options):
    torch.manual_seed(1)
    return MODELS[name](**options)


def test_predictions_have_the_shape_of_their_kind(name):
    batch, model = irregular_batch(), made(name)
    expected = batch.ys.shape if name in SERIES else (5, 3)
    for training, draws in ((True, 2), (False, 3)):
        output = model.train(training)(batch)
        assert output.draws == (name in STOCHASTIC)
        assert output.prediction.shape == ((draws, *expected) if output.draws else expected)


def test_a_training_step_is_the_same_compiled(name, traced):
    found = []
    for compile in ("off", "on"):
        model = made(name)
        model.solver = replace(model.solver or RungeKutta("heun", 1e-2, 1e-2), compile=compile)
        model.double().reseed(3)
        batch = irregular_batch()
        prediction = model(batch._replace(ys=batch.ys.double())).prediction
        found.append((prediction, torch.autograd.grad(prediction.square().mean(), list(model.parameters()))))
    (expected, gradients), (prediction, others) = found
    torch.testing.assert_close(prediction, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_every_parameter_gets_a_finite_gradient(name):
    model = made(name)
    model(irregular_batch()).prediction.square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_unseen_values_never_change_the_answer(name):
    batch, model = irregular_batch(), made(name).eval()
    blind = batch._replace(ys=torch.where(batch.seen, batch.ys, torch.nan))
    model.reseed(3)
    expected = model(batch).prediction
    model.reseed(3)
    torch.testing.assert_close(model(blind).prediction, expected, rtol=0, atol=0)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(name):
    if name == "ode_adaptive" or (name in ("forecaster", "interpolator")):
        solver = FixedRungeKutta("rk4", 2)
    else:
        solver = None
    model, batch = made(name), irregular_batch()
    model.eval()
    model.solver = solver or model.solver
    model.reseed(3)
    together = model(batch).prediction
    model.reseed(3)
    alone = model(take(batch, [2])).prediction
    rows = 1 if name in STOCHASTIC else 0
    torch.testing.assert_close(alone.squeeze(rows), together.select(rows, 2), rtol=1e-5, atol=1e-6)


def test_draws_differ_and_repeat_with_the_seed():
    model, batch = made("sde_forecaster").eval(), irregular_batch()
    model.reseed(1)
    first = model(batch).prediction
    model.reseed(1)
    again = model(batch).prediction
    model.reseed(2)
    other = model(batch).prediction
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[0] - first[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["cde", "sde_forecaster", "forecaster"])
def test_checkpointed_gradients_are_the_direct_ones(name):
    batch, grads = irregular_batch(), []
    for options in ({}, {"adjoint": Checkpointed()}):
        model = made(name, **options).double()
        model(batch._replace(ys=batch.ys.double())).prediction.square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for direct, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, direct, rtol=1e-10, atol=1e-12)


def test_a_copy_is_independent():
    model = made("forecaster")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    batch = irregular_batch()
    assert twin(batch).prediction.abs().max() == 0
    assert model(batch).prediction.abs().max() > 0
    assert isinstance(twin.dynamics, nn.Module) and twin.dynamics.model is twin


def test_forecasts_start_at_the_last_seen_time():
    model, batch = made("forecaster").eval(), irregular_batch()
    last = (batch.seen.any(-1) * torch.arange(batch.ts.shape[1])).amax(1)
    prediction = model(batch).prediction
    for row, n in enumerate(last.tolist()):
        torch.testing.assert_close(prediction[row, : n + 1], prediction[row, n].expand(n + 1, -1))


class Online(NeuralCDE):
    """A prediction at every observation."""

    def __init__(self, **options):
        super().__init__(**options)
        self.flow, self.read = CDEField(4, path_channels(2, counts=False), width=8), nn.Linear(4, 2)

    def field(self, t, z):
        return self.flow(t, z)

    def encode(self, x0, batch):
        return x0.sum(dim=1, keepdim=True).expand(-1, 4)

    def times(self, path, batch):
        return path.at_observations()

    def decode(self, zs, batch):
        return self.read(zs)


@pytest.mark.parametrize(("interpolation", "causal"), [(Rectilinear.through, True), (NaturalCubic.through, False)])
def test_predictions_at_every_observation_know_the_past_alone_where_the_path_does(interpolation, causal):
    torch.manual_seed(1)
    model, batch = Online(interpolation=interpolation, solver=FixedRungeKutta()), irregular_batch()
    later = batch._replace(ys=torch.cat([batch.ys[:, :2], -batch.ys[:, 2:]], dim=1))
    prediction, other = model(batch).prediction, model(later).prediction
    assert prediction.shape == (*batch.ts.shape, 2)
    assert torch.equal(prediction[:, :2], other[:, :2]) == causal
    assert not torch.equal(prediction[:, 2], other[:, 2])
