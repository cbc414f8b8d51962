"""Which observed values a model may read; the rest is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ndeflow.data.counter import uniform


class Visibility(ABC):
    """A policy: the seen part of the observed values."""

    @abstractmethod
    def seen(self, mask: Tensor, index: Tensor) -> Tensor:
        """(N, T, C) bool, a subset of `mask` (N, T, C); `index` (N,) are the rows' numbers in the data set."""


@final
@dataclass(frozen=True)
class Everything(Visibility):
    """All of it: for classification, or to reconstruct."""

    def seen(self, mask: Tensor, index: Tensor) -> Tensor:
        return mask.clone()


@final
@dataclass(frozen=True)
class First(Visibility):
    """What is observed at the first `count` observed times of a row; the rest is to be forecast."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected at least one seen time, got First(count={self.count})")

    def seen(self, mask: Tensor, index: Tensor) -> Tensor:
        return mask & (observed_rank(mask) <= self.count).unsqueeze(-1)


@final
@dataclass(frozen=True)
class FirstFraction(Visibility):
    """What is observed in the first `fraction` of a row's observed times, rounded, at least one."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"expected a fraction in (0, 1], got FirstFraction(fraction={self.fraction})")

    def seen(self, mask: Tensor, index: Tensor) -> Tensor:
        rank = observed_rank(mask)
        count = (self.fraction * rank[:, -1:]).round().clamp(min=1)
        return mask & (rank <= count).unsqueeze(-1)


@final
@dataclass(frozen=True)
class Hidden(Visibility):
    """All but a random `fraction` of the observed values, which are to be filled in; each row keeps at least one.

    Which ones is a function of (seed, row, place in time, channel), so the same for every model.
    """

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"expected a fraction in (0, 1), got Hidden(fraction={self.fraction})")

    def seen(self, mask: Tensor, index: Tensor) -> Tensor:
        _, length, channels = mask.shape
        places = torch.arange(length)[:, None], torch.arange(channels)
        draw = uniform(self.seed, index[:, None, None], *places).masked_fill(~mask, -1.0)
        best = draw.flatten(1).amax(dim=1)[:, None, None]
        return mask & ((draw >= self.fraction) | (draw == best))


def observed_rank(mask: Tensor) -> Tensor:
    """(N, T): how many observed times a row has up to and including each time."""
    return mask.any(dim=-1).long().cumsum(dim=1)
