"""Known equations against their invariants, equilibria and parameters."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.fields.known import SIR, CubicSpiral, DampedPendulum, LotkaVolterra, OrnsteinUhlenbeck

T0 = torch.tensor(0.0)


def rate_of(quantity, field, y: torch.Tensor) -> torch.Tensor:
    """d/dt quantity(y) along the field, (B,)."""
    y = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quantity(y).sum(), y)
    return (gradient * field(T0, y)).sum(dim=-1)


def test_lotka_volterra_conserves_its_first_integral_and_rests_at_its_equilibrium():
    growth, predation, conversion, death = 0.6, 0.03, 0.02, 0.8
    field = LotkaVolterra(growth, predation, conversion, death).double()

    def integral(y: torch.Tensor) -> torch.Tensor:
        prey, predator = y.unbind(-1)
        return conversion * prey - death * prey.log() + predation * predator - growth * predator.log()

    y = 40 * torch.rand(10, 2, dtype=torch.float64) + 1
    torch.testing.assert_close(rate_of(integral, field, y), torch.zeros(10, dtype=torch.float64), atol=1e-6, rtol=0)
    rest = torch.tensor([[death / conversion, growth / predation]], dtype=torch.float64)
    torch.testing.assert_close(field(T0, rest), torch.zeros_like(rest), atol=1e-5, rtol=0)


def test_sir_has_its_threshold_and_its_first_integral():
    field = SIR(population=1000, infection=2.0, recovery=0.5).double()
    threshold = torch.tensor([[250.0, 40.0]], dtype=torch.float64)  # S = population recovery / infection
    torch.testing.assert_close(field(T0, threshold)[:, 1], torch.zeros(1, dtype=torch.float64), atol=1e-5, rtol=0)

    def integral(y: torch.Tensor) -> torch.Tensor:
        susceptible, infected = y.unbind(-1)
        return susceptible + infected - 1000 * 0.5 / 2.0 * susceptible.log()

    y = 400 * torch.rand(10, 2, dtype=torch.float64) + 1
    torch.testing.assert_close(rate_of(integral, field, y), torch.zeros(10, dtype=torch.float64), atol=1e-4, rtol=0)


def test_the_pendulum_loses_energy_to_friction_alone():
    length, friction = 2.0, 0.3
    field = DampedPendulum(length, friction).double()

    def energy(y: torch.Tensor) -> torch.Tensor:  # per mass and length^2
        angle, speed = y.unbind(-1)
        return speed.square() / 2 - 9.81 / length * angle.cos()

    y = torch.randn(10, 2, dtype=torch.float64)
    torch.testing.assert_close(rate_of(energy, field, y), -friction * y[:, 1].square(), atol=1e-6, rtol=1e-6)


def test_ornstein_uhlenbeck_returns_to_its_level_with_constant_noise():
    sde = OrnsteinUhlenbeck(2, rate=3.0, volatility=0.5, level=1.0)
    y = torch.randn(6, 2)
    torch.testing.assert_close(sde.drift(T0, y), 3 * (1 - y))
    torch.testing.assert_close(sde.diffusion(T0, y), torch.full((6, 2), 0.5))


def test_the_spiral_loses_its_fourth_powers_to_damping_alone():
    sde = CubicSpiral(rotation=1.5, damping=0.2, volatility=0.3).double()
    y = torch.randn(10, 2, dtype=torch.float64)

    def drift(t, y):
        return sde.drift(t, y)

    rate = rate_of(lambda y: (y**4).sum(dim=-1), drift, y)
    torch.testing.assert_close(rate, -4 * 0.2 * (y**6).sum(dim=-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sde.diffusion(T0, y), 0.3 * y, atol=1e-6, rtol=1e-6)


def test_parameters_are_learned_as_logarithms_in_the_constructors_order():
    torch.testing.assert_close(
        LotkaVolterra(0.6, 0.03, 0.02, 0.8).logs.detach().exp(), torch.tensor([0.6, 0.03, 0.02, 0.8])
    )
    assert SIR(763, infection=1.0).logs[0].item() == 0
    assert DampedPendulum(1.0, 0.5).logs[1].item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LotkaVolterra(predation=0.0), "predation"),
        (lambda: SIR(763, recovery=-1.0), "recovery"),
        (lambda: SIR(0), "population"),
        (lambda: DampedPendulum(friction=0.0), "friction"),
        (lambda: OrnsteinUhlenbeck(rate=math.nan), "rate"),
        (lambda: CubicSpiral(volatility=0.0), "volatility"),
    ],
)
def test_a_parameter_that_is_not_positive_is_refused(make, name):
    with pytest.raises(ValueError, match=f"expected a positive {name}"):
        make()
