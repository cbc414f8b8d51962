"""A number in place of a network."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class Constant(nn.Module):
    """A learned number, 0 at first, whatever the input: (..., inputs) -> (..., 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(*x.shape[:-1], 1)
