"""What all problems have: tensors on a device, a loss, perhaps a reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from benchmarking.cases import Case

C = TypeVar("C", bound=Case)


class Result(NamedTuple):
    """The end state (B, dim) and, of a case that trains, the gradient of all parameters (P,); float64, on the CPU."""

    y: Tensor
    gradient: Tensor | None


class Problem(ABC, Generic[C]):
    """A case's tensors on a device: field, y0 (B, dim), ts (T,). All systems solve it with the same weights.

    evaluated: a module, called with time and state once an evaluation.
    """

    field: nn.Module
    y0: Tensor
    ts: Tensor

    def __init__(self, case: C, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device

    @property
    def evaluated(self) -> nn.Module:
        return self.field

    @abstractmethod
    def reference(self) -> Result | None:
        """In float64; None where that takes too long."""


class Hidden(nn.Module):
    """A tanh MLP with one hidden layer, without time: t, (B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.last(self.first(y).tanh())


def loss(ys: Tensor) -> Tensor:
    return ys.square().mean()


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    """One vector in float64 on the CPU."""
    return torch.cat([x.detach().double().cpu().flatten() for x in tensors if x is not None])
