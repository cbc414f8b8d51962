"""A right-hand side that sees the time at every layer."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ndeflow.nets.time import with_time


@final
class TimedField(nn.Module):
    """dy/dt = tanh(W2 [tanh(W1 [y, t]), t]): y (B, size) -> (B, size).

    The network of Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", section 4.1.1. width: of the hidden layer.
    """

    def __init__(self, size: int, *, width: int = 64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size + 1, width), nn.Linear(width + 1, size)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(with_time(t, y)))
        return torch.tanh(self.last(with_time(t, hidden)))
