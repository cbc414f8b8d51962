"""How much each time counts in the loss of a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ndeflow.diffusion import Schedule


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
    """g^2: with uniform times a bound of the likelihood, but for constants.

    Song, Durkan, Murray, Ermon 2021, "Maximum likelihood training of score-based diffusion models", theorem 1.
    """

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.coefficients(t).g_squared
