"""How much each time counts in the loss of a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ndeflow.generative.schedules import Schedule


class Weighting(ABC):
    """A positive function of time."""

    @abstractmethod
    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Shaped like t."""


@final
@dataclass(frozen=True)
class VarianceWeighting(Weighting):
    """sigma^2: all times have losses of one size (Song, Ermon 2019)."""

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule(t).sigma.square()


@final
@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """g^2: half the loss bounds the negative log-likelihood but for a constant (Song, Durkan, Murray, Ermon 2021)."""

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.coefficients(t).g_squared
