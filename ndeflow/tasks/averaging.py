"""The mean of a model's weights over the course of training."""

from __future__ import annotations

from typing import final

import torch
from torch import nn


@final
class Average(nn.Module):
    """An exponential moving average of a model's parameters: a <- d a + (1 - d) p, d = min(decay, (1 + n) / (10 + n)).

    n is the number of updates before, so that what the weights were at first is soon forgotten. Raises ValueError for
    a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay of the average in [0, 1), got {decay}; 0.999 is usual")
        self.decay = decay
        self.values = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in model.parameters()
        )

    @torch.no_grad()
    def update(self, model: nn.Module, n: int) -> None:
        decay = min(self.decay, (1 + n) / (10 + n))
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            value.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Put the average into the model and what was there in its place; a second time undoes it."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            kept = value.clone()
            value.copy_(parameter)
            parameter.copy_(kept)
