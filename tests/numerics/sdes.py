"""Stochastic differential equations for tests: of every noise and sense, with known solutions, and free."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndeflow.numerics.field import SDE

F64 = torch.float64
METHODS = [
    ("euler", "ito"),
    ("milstein", "ito"),
    ("milstein", "stratonovich"),
    ("heun", "stratonovich"),
    ("midpoint", "stratonovich"),
]
"""The methods of fixed steps for multiplicative noise, each with a sense that it solves; without reversible Heun."""


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Waves(SDE):
    """A bounded nonlinear SDE on three components, of any noise and sense, whose drift depends on time."""

    def __init__(self, noise_type: str = "diagonal", sde_type: str = "ito") -> None:
        size = {"diagonal": 3, "scalar": 1}.get(noise_type, 2)
        super().__init__(noise_type=noise_type, sde_type=sde_type, noise_size=size)
        self.rate = nn.Parameter(tensor(0.7))
        self.weight = nn.Parameter(tensor(0.4, -0.3, 0.5)[:, None] * torch.linspace(1, 2, size, dtype=F64))

    def drift(self, t, y, *context):
        shift = context[0] if context else 0.0
        return torch.sin(self.rate * y) * torch.cos(t) + shift

    def diffusion(self, t, y, *context):
        if self.noise_type == "diagonal":
            return self.weight[:, 0] * torch.cos(y)
        if self.noise_type == "additive":
            return self.weight.expand(len(y), 3, 2) * (1 + 0.1 * torch.as_tensor(t).reshape(-1, 1, 1))
        return self.weight * torch.cos(y).unsqueeze(-1)


class Growth(SDE):
    """Geometric Brownian motion dy = 0.3 y dt + 0.8 y dW."""

    def __init__(self, sde_type: str, noise_type: str = "diagonal") -> None:
        super().__init__(noise_type=noise_type, sde_type=sde_type, noise_size=1)

    def drift(self, t, y):
        return 0.3 * y

    def diffusion(self, t, y):
        return 0.8 * y if self.noise_type == "diagonal" else 0.8 * y.unsqueeze(-1)


class Pull(SDE):
    """dy = -sin(y) dt + 0.6 dW: additive noise."""

    def __init__(self, sde_type: str = "ito") -> None:
        super().__init__(noise_type="additive", sde_type=sde_type, noise_size=1)

    def drift(self, t, y):
        return -torch.sin(y)

    def diffusion(self, t, y):
        return 0.6 * torch.ones_like(y).unsqueeze(-1)


class OrnsteinUhlenbeck(SDE):
    """dy = -1.5 y dt + 0.7 dW."""

    def __init__(self, sde_type: str) -> None:
        super().__init__(noise_type="additive", sde_type=sde_type, noise_size=1)

    def drift(self, t, y):
        return -1.5 * y

    def diffusion(self, t, y):
        return torch.full_like(y, 0.7).unsqueeze(-1)


class Free(SDE):
    """dy = dW."""

    def __init__(self, size: int) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=size)

    def drift(self, t, y):
        return torch.zeros_like(y)

    def diffusion(self, t, y):
        return torch.ones_like(y)


class Bounded(SDE):
    """dy = (1 - y) dt + 0.3 sqrt(y (2 - y)) dW, Ito: between 0 and 2, and outside there is no diffusion."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=1)

    def drift(self, t, y):
        return 1 - y

    def diffusion(self, t, y):
        return 0.3 * (y * (2 - y)).sqrt()


class Crosswise(SDE):
    """dy_1 = y_2 dW_1, dy_2 = y_1 dW_2, Ito: diagonal noise, each of which acts by the other component."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)

    def drift(self, t, y):
        return torch.zeros_like(y)

    def diffusion(self, t, y):
        return y.flip(1)
