"""Known equations with learnable parameters: ground truth of simulations, and the known part of hybrid models.

Positive parameters are learned as the vector `logs` of their logarithms, in the constructor's order, so that no
optimiser step can change a sign. Freeze an equation with `requires_grad_(False)`.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.numerics.field import SDE

GRAVITY = 9.81  # m / s^2


@final
class LotkaVolterra(nn.Module):
    """Prey u and predator v: du/dt = growth u - predation u v, dv/dt = conversion u v - death v.

    y: (B, 2) = (u, v), densities in a unit N. growth, death: 1 / time. predation, conversion: 1 / (N time). The
    defaults suit hare and lynx in thousands of pelts, time in years. Lotka 1925; Volterra 1926.
    """

    def __init__(
        self, growth: float = 0.5, predation: float = 0.025, conversion: float = 0.025, death: float = 0.8
    ) -> None:
        super().__init__()
        self.logs = _logs(growth=growth, predation=predation, conversion=conversion, death=death)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        growth, predation, conversion, death = self.logs.exp()
        prey, predator = y.split(1, dim=-1)
        return torch.cat([prey * (growth - predation * predator), predator * (conversion * prey - death)], dim=-1)


@final
class SIR(nn.Module):
    """An epidemic: dS/dt = -infection S I / population, dI/dt = infection S I / population - recovery I.

    y: (B, 2) = (S, I), people susceptible and infected. infection, recovery: 1 / time. population: a fixed number
    of people; population - S - I have recovered. Kermack & McKendrick 1927.
    """

    def __init__(self, population: float, infection: float = 1.0, recovery: float = 0.5) -> None:
        super().__init__()
        if population <= 0:
            raise ValueError(f"expected a positive population, got {population}")
        self.population = population
        self.logs = _logs(infection=infection, recovery=recovery)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        infection, recovery = self.logs.exp()
        susceptible, infected = y.split(1, dim=-1)
        new = infection * susceptible * infected / self.population
        return torch.cat([-new, new - recovery * infected], dim=-1)


@final
class DampedPendulum(nn.Module):
    """d angle/dt = speed, d speed/dt = -(g / length) sin(angle) - friction speed, with g = 9.81 m / s^2.

    y: (B, 2) = (angle, speed), in rad and rad / s. length: m. friction: 1 / s.
    """

    def __init__(self, length: float = 1.0, friction: float = 0.2) -> None:
        super().__init__()
        self.logs = _logs(length=length, friction=friction)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        length, friction = self.logs.exp()
        angle, speed = y.split(1, dim=-1)
        return torch.cat([speed, -GRAVITY / length * angle.sin() - friction * speed], dim=-1)


@final
class OrnsteinUhlenbeck(SDE):
    """dy = rate (level - y) dt + volatility dW, for each of `size` components with its own noise.

    From y0, y(t) is normal with mean level + (y0 - level) exp(-rate t) and variance
    volatility^2 (1 - exp(-2 rate t)) / (2 rate). y: (B, size). rate: 1 / time. level: unit of y. volatility: unit of
    y / sqrt(time). Uhlenbeck & Ornstein 1930.
    """

    def __init__(self, size: int = 1, *, rate: float = 1.0, volatility: float = 1.0, level: float = 0.0) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=size)
        self.logs = _logs(rate=rate, volatility=volatility)
        self.level = nn.Parameter(torch.tensor(float(level)))

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.logs[0].exp() * (self.level - y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.logs[1].exp() * torch.ones_like(y)


@final
class CubicSpiral(SDE):
    """A spiral with noise: dy = f(y^3) dt + volatility y dW, each component with its own noise, Ito.

    Of y = (u, v) the drift is (rotation v^3 - damping u^3, -rotation u^3 - damping v^3): without noise u^4 + v^4 falls
    at the rate 4 damping (u^6 + v^6). y: (B, 2), in a unit U. rotation, damping: 1 / (U^2 time). volatility:
    1 / sqrt(time). The equation of Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", section 4.2.1.
    """

    def __init__(self, rotation: float = 2.0, damping: float = 0.1, volatility: float = 0.2) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)
        self.logs = _logs(rotation=rotation, damping=damping, volatility=volatility)

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        rotation, damping, _ = self.logs.exp()
        u, v = (y**3).split(1, dim=-1)
        return torch.cat([rotation * v - damping * u, -rotation * u - damping * v], dim=-1)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.logs[2].exp() * y


def _logs(**values: float) -> nn.Parameter:
    """Logarithms of positive numbers as one learnable vector; raises ValueError for one that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"expected a positive {name}, got {value}; it is learned as a logarithm")
    return nn.Parameter(torch.tensor([math.log(value) for value in values.values()]))
