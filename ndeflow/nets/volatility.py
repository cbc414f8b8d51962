"""Positive functions of time, as the strength of noise."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ndeflow.nets.mlp import MLP
from ndeflow.nets.time import with_time


@final
class Volatility(nn.Module):
    """sigma(t) = softplus(s(t)) > 0, (B, size) for z (B, size) at t, 0-dim or (B, 1).

    s: a network with one hidden layer of `width` units. scale: sigma(t) = scale sigmoid(s(t)) < scale instead; None: no
    bound. Raises ValueError for a scale that is not positive.
    """

    def __init__(self, size: int, *, width: int = 64, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise ValueError(f"expected a positive scale of sigma, or None for no bound, got {scale}")
        self.scale = scale
        self.net = MLP(1, size, width=width, depth=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        s = self.net(with_time(t, z[..., :0]))
        return nn.functional.softplus(s) if self.scale is None else self.scale * s.sigmoid()


@final
class RectifiedVolatility(nn.Module):
    """sigma(t) = sigmoid(theta) relu(s(t)) >= 0, of shapes as `Volatility`'s; theta is a learned number, 1 at first.

    Where s is negative at all times there is neither noise nor a gradient that would bring it back.
    """

    def __init__(self, size: int, *, width: int = 64) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))
        self.net = MLP(1, size, width=width, depth=1, activation=nn.ReLU)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.theta.sigmoid() * self.net(with_time(t, z[..., :0])).relu()
