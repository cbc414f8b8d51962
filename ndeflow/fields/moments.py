"""Mean and variance of a stochastic differential equation, as an ordinary one."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.numerics.field import SDE

LEAST = 1e-12  # below it the root of a variance is that of this, and constant: at 0 it has no derivative


@final
class Moments(nn.Module):
    """Mean m and variance v of dx = f(t, x) dt + g(t, x) dW, x scalar, Ito, as if x were normal.

    dm = E f dt, dv = (2 E (x - m) f + E g^2) dt, expectations over N(m, v) by the two points m +- sqrt v: exact for f
    quadratic and g^2 cubic in x (Särkkä & Solin 2019, "Applied Stochastic Differential Equations", chapter 9). One
    Euler step from v = 0 gives N(m + h f, h g^2): the transition of Euler and Maruyama. y: (B, 2), m and v. Raises
    ValueError for another SDE.
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        if (sde.noise_type, sde.sde_type, sde.noise_size) != ("diagonal", "ito", 1):
            raise ValueError(
                "expected an Ito SDE on one channel with diagonal noise for its moments, got noise "
                f"{sde.noise_type}, {sde.sde_type}, of size {sde.noise_size}; use ScalarSDE"
            )
        self.sde = sde

    def forward(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        mean, variance = y.split(1, dim=-1)
        std = root(variance)
        above, noise_above = self.sde(t, mean + std, *context)
        below, noise_below = self.sde(t, mean - std, *context)
        spread = 0.5 * (noise_above.square() + noise_below.square())
        return torch.cat([0.5 * (above + below), std * (above - below) + spread], dim=-1)


def root(variance: Tensor) -> Tensor:
    """The standard deviation, at least sqrt(1e-12); gradients are finite where the variance is 0."""
    return variance.clamp(min=LEAST).sqrt()
