"""Free right-hand sides of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from ndeflow.nets.mlp import MLP
from ndeflow.nets.time import with_time


@final
class MLPField(nn.Module):
    """dy/dt = MLP([t, y, x]): y (B, ..., size) -> (B, ..., size), with x an input such as a control path's value.

    inputs: channels of x (B, ..., inputs), 0: none is given. time: whether the network sees t. activation: as in
    `MLP`. bounded: a final tanh, |dy/dt| < 1.
    """

    def __init__(
        self,
        size: int,
        *,
        inputs: int = 0,
        width: int = 64,
        depth: int = 2,
        time: bool = True,
        activation: Callable[[], nn.Module] = nn.SiLU,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.time = time
        self.net = MLP(
            time + size + inputs,
            size,
            width=width,
            depth=depth,
            activation=activation,
            final=nn.Tanh() if bounded else None,
        )

    def forward(self, t: Tensor, y: Tensor, *x: Tensor) -> Tensor:
        seen = torch.cat([y, *x], dim=-1) if x else y
        return self.net(with_time(t, seen) if self.time else seen)
