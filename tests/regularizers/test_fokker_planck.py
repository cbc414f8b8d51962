"""Residuals of the Fokker-Planck equation: nothing for exact densities, the closed form otherwise, and estimates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Output
from ndeflow.diffusion import Denoised
from ndeflow.generative.schedules import OrnsteinUhlenbeck
from ndeflow.models import NeuralPotential, NeuralScore, ODEForecaster
from ndeflow.regularizers import Kinetic, LogDensityResidual, NoisedPoints, ScoreResidual, UniformBox
from ndeflow.regularizers.fokker_planck import log_density_residual, rademacher, score_residual
from tests.generative.diffusions import F64, SCHEDULES, Bell, Mixture, gaussian, places, three
from tests.regularizers.fields import assert_small_differences

OU = OrnsteinUhlenbeck()
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@schedules
@pytest.mark.parametrize("law", [gaussian, three])
def test_residuals_of_an_exact_density_vanish(schedule, law) -> None:
    """Beside the terms of the equation, which are as large as 1 / sigma^2 and more."""
    model, (t, x) = law(schedule), places(schedule)
    slope = torch.func.grad(lambda t: model.potential(t, x).sum())(t)
    assert slope.abs().max() > 0.1
    (r,), (eps,) = log_density_residual(model, t, x), score_residual(model, t, x)
    assert r.shape == (64,) and eps.shape == (64, 2)
    assert r.abs().max() < 1e-10 * (1 + slope.abs().max()) and eps.abs().max() < 1e-10 * (1 + slope.abs().max())


def test_a_wrong_density_has_the_residual_of_the_closed_form() -> None:
    """R = (v' + 2 v - 1) (x^2 / v - 1) / (2 v) of `Bell` under dx = -x dt + dW."""
    t, x = places(OU, size=1)
    model = Bell(OU, lambda t: 0.5 - 0.46 * (-2 * t).exp() * (1 + 0.2 * (3 * t).sin()))
    v, slope = torch.func.jvp(model.variance, (t,), (torch.ones_like(t),))
    want = ((slope + 2 * v - 1) * (x.square() / v - 1) / (2 * v)).squeeze(-1)
    assert want.abs().max() > 0.5
    torch.testing.assert_close(log_density_residual(model, t, x)[0], want, rtol=1e-10, atol=1e-10)


def net(kind: type = NeuralPotential, size: int = 2) -> NeuralPotential:
    torch.manual_seed(2)
    return kind(size, OU, width=8, depth=2).double()


def test_the_residual_of_the_score_is_the_gradient_of_that_of_the_log_density() -> None:
    t, x = places(OU)
    model = net()
    want = torch.func.grad(lambda x: log_density_residual(model, t, x)[0].sum())(x)
    torch.testing.assert_close(score_residual(model, t, x)[0], want, rtol=1e-11, atol=1e-12)


class Bent(Mixture):
    """With a residual of the size of a second derivative."""

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        return super().potential(t, x) + 0.1 * x[:, 0] ** 3


@pytest.mark.parametrize("residual", [log_density_residual, score_residual])
def test_probes_give_the_residual_on_average_and_two_of_them_its_square(residual) -> None:
    model, count = Bent(OU, [[1.0, 0.0], [-0.5, 0.8], [0.0, -1.2]], [0.4, 0.6, 0.5], [0.5, 0.3, 0.2]), 40_000
    t, x = places(OU, 1)
    (exact,) = residual(model, t, x)
    many = t.expand(count, 1), x.expand(count, 2)
    torch.manual_seed(4)
    first, second = (r.reshape(count, -1) for r in residual(model, *many, (rademacher(many[1]), rademacher(many[1]))))

    def error(found: Tensor, want: Tensor) -> Tensor:
        """In standard errors."""
        return ((found.mean(dim=0) - want) / (found.std(dim=0) / count**0.5)).abs().max()

    square = exact.square().sum()
    assert error(first, exact.reshape(1, -1)) < 4 and error((first * second).sum(dim=1), square) < 4
    assert error(first.square().sum(dim=1), square) > 8  # its own square is biased


def output(model, rows: int = 6) -> Denoised:
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, rows, 2, dtype=F64, generator=generator)
    t = 0.1 + torch.rand(rows, 1, dtype=F64, generator=generator)
    return Denoised(model.score(t, x), t=t, x_t=x, noise=noise)


PENALTIES = [
    (LogDensityResidual(), NeuralPotential),
    (LogDensityResidual(exact=False), NeuralPotential),
    (LogDensityResidual(collocation=UniformBox(2.0, 7)), NeuralPotential),
    (ScoreResidual(), NeuralScore),
    (ScoreResidual(exact=False), NeuralScore),
    (ScoreResidual(), NeuralPotential),
]


@pytest.mark.parametrize(("penalty", "kind"), PENALTIES)
def test_gradients_are_those_of_small_differences(penalty, kind) -> None:
    model = net(kind)

    def value() -> Tensor:
        torch.manual_seed(3)  # the same probes and points
        return penalty.penalty(model, output(model), None, [])

    assert_small_differences(value, list(model.parameters()), 1e-6)


def test_compiled_it_is_the_same() -> None:
    torch.manual_seed(2)
    model = NeuralPotential(2, OU, width=4, depth=1).double()
    penalties = LogDensityResidual(), LogDensityResidual(compiled=True)
    found = [penalty.penalty(model, output(model, 40), None, []) for penalty in penalties]
    gradients = [torch.autograd.grad(value, list(model.parameters())) for value in found]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("penalty", [LogDensityResidual(exact=False), ScoreResidual(exact=False)])
def test_the_penalty_by_probes_is_not_biased(penalty) -> None:
    """Of an exact density it is 0 on average, where the mean square of one residual is not."""
    model, (t, x) = three(OU), places(OU, 1)
    t, x = t.expand(40_000, 1), x.expand(40_000, 2)
    same = Denoised(x, t=t, x_t=x, noise=x)
    torch.manual_seed(4)
    found = float(penalty.penalty(model, same, None, []))
    alone = penalty.residuals(model, t, x, (rademacher(x),))[0].reshape(40_000, -1)
    biased = float((penalty.collocation.points(same, OU).weight * alone.square().sum(dim=1)).mean())
    assert biased > 1e-3 and abs(found) < 0.05 * biased


def test_noised_points_count_by_their_variance_and_a_box_alike() -> None:
    model = net()
    out = output(model)
    points = NoisedPoints(2.0).points(out, OU)
    assert points.t is out.t and points.x is out.x_t
    torch.testing.assert_close(points.weight, OU(out.t).sigma.squeeze(-1) ** 4)
    want = (points.weight * log_density_residual(model, out.t, out.x_t)[0].square()).mean()
    torch.testing.assert_close(LogDensityResidual().penalty(model, out, None, []), want)
    t, x, weight = UniformBox(2.0, 10_000).points(out, OU)
    assert x.abs().max() <= 2 and t.min() >= OU.t_min and t.max() <= OU.t_max and bool((weight == 1).all())
    assert x.mean().abs() < 0.06 and abs(x.std() - 2 / 3**0.5) < 0.03 and abs(t.mean() - 1.505) < 0.05


def test_what_has_no_score_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"got NeuralScore; use model=neural_potential, or regularizer=score_residual"):
        LogDensityResidual().check(net(NeuralScore))
    with pytest.raises(ValueError, match="got ODEForecaster; use model=neural_score"):
        ScoreResidual().check(ODEForecaster(2))
    LogDensityResidual().check(net())
    ScoreResidual().check(net())
    with pytest.raises(ValueError, match="expected the noised points"):
        ScoreResidual().penalty(net(), Output(torch.zeros(1, 2)), None, [])
    with pytest.raises(ValueError, match="expected a model that solves when it trains for Kinetic, got NeuralScore"):
        Kinetic().penalty(net(NeuralScore), output(net()), None, [])
    with pytest.raises(ValueError, match="expected a positive half_width and count"):
        UniformBox(count=0)
