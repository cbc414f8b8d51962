"""Mean and variance of scalar SDEs, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.fields.moments import Moments
from ndeflow.fields.sde import DiagonalSDE, ScalarSDE
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solve import solve

START = torch.tensor([[0.5, 0.0], [-1.0, 0.0]], dtype=torch.float64)


class Reverting(SDE):
    """dx = a (b - x) dt + s dW."""

    def __init__(self, **kind) -> None:
        super().__init__(**{"noise_type": "diagonal", "sde_type": "ito", "noise_size": 1, **kind})
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b, self.s = 0.2, 0.6

    def drift(self, t: Tensor, y: Tensor, *context: Tensor) -> Tensor:
        return self.a * (self.b - y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Tensor) -> Tensor:
        return self.s * torch.ones_like(y)


def test_ornstein_uhlenbeck_has_its_exact_moments():
    sde, ts = Reverting(), torch.linspace(0, 3, 4, dtype=torch.float64)
    found = solve(Moments(sde), START, ts, solver=RungeKutta(rtol=1e-9, atol=1e-9)).ys
    decay = (-sde.a * ts).exp()
    mean = sde.b + (START[:, :1] - sde.b) * decay
    variance = sde.s**2 * (1 - decay.square()) / (2 * sde.a)
    torch.testing.assert_close(found[..., 0], mean, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found[..., 1], variance.expand(2, -1), rtol=1e-7, atol=1e-8)


def test_one_euler_step_is_the_transition_of_euler_and_maruyama():
    torch.manual_seed(0)
    sde = ScalarSDE().double()
    h = torch.tensor(0.3, dtype=torch.float64)
    found = solve(Moments(sde), START, torch.stack([0 * h, h]), solver=FixedRungeKutta("euler")).ys
    x = START[:, :1]
    expected = torch.cat([x + h * sde.drift(h, x), h * sde.diffusion(h, x).square()], dim=1)
    torch.testing.assert_close(found[:, 1], expected)
    wanted, given = (torch.autograd.grad(y.square().sum(), list(sde.parameters())) for y in (expected, found[:, 1]))
    torch.testing.assert_close(given, wanted)


def test_variance_grows_by_the_slope_of_the_drift():
    sde, t = Reverting(), torch.tensor(0.0)
    rate = Moments(sde)(t, torch.tensor([[0.3, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(rate[0, 1], (-2 * sde.a * 0.4 + sde.s**2))
    (gradient,) = torch.autograd.grad(rate[0, 1], sde.a)
    assert gradient.item() == pytest.approx(-0.8)


def test_a_square_root_process_has_its_exact_variance():
    sde, ts = Reverting(), torch.tensor([0.0, 2.0], dtype=torch.float64)
    sde.diffusion = lambda t, y: 0.6 * y.clamp(min=0).sqrt()  # dx = a (b - x) dt + s sqrt(x) dW
    found = solve(Moments(sde), START[:1], ts, solver=RungeKutta(rtol=1e-9, atol=1e-9, compile="off")).ys[0, 1, 1]
    gone = 1 - (-2 * sde.a).exp()
    exact = 0.36 / sde.a * gone * (0.5 * (-2 * sde.a).exp() + 0.5 * sde.b * gone)  # Cox, Ingersoll, Ross 1985, eq. 19
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("sde", [DiagonalSDE(2), Reverting(sde_type="stratonovich"), Reverting(noise_type="additive")])
def test_other_equations_are_refused(sde):
    with pytest.raises(ValueError, match="expected an Ito SDE on one channel with diagonal noise"):
        Moments(sde)


def test_widths_of_zero_are_a_line_and_a_constant():
    sde, t = ScalarSDE(drift_width=0, diffusion_width=0), torch.tensor(0.0)
    x = torch.tensor([[0.0], [1.0], [3.0]])
    drift, diffusion = sde(t, x)
    torch.testing.assert_close(drift[2] - drift[1], 2 * (drift[1] - drift[0]))
    assert diffusion.unique().numel() == 1 and (diffusion > 0).all()
