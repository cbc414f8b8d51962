"""Step-size controllers: by how much the next step is longer than the last."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Controller(ABC):
    """The factor of the next step size from the tolerance-scaled error of this step, a plain number.

    safety: aim below the tolerance by this factor of the step. smallest, largest: bounds of the factor. Raises
    ValueError unless 0 < smallest < 1 < largest and 0 < safety <= 1.
    """

    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.smallest < 1 < self.largest and 0 < self.safety <= 1):
            raise ValueError(
                f"expected 0 < smallest < 1 < largest and 0 < safety <= 1, got smallest {self.smallest}, "
                f"largest {self.largest}, safety {self.safety}"
            )

    @final
    def factor(self, ratio: float, previous: float, order: float) -> float:
        """ratio: this step's error, accepted if <= 1. previous: the last accepted one's, 1 at first. order: of the
        error, one more than the less accurate method's."""
        if not ratio < math.inf:  # or not a number
            return self.smallest
        if ratio == 0:
            return self.largest
        power = _elementary(ratio, order) if ratio > 1 else self._power(ratio, max(previous, LEAST), order)
        return min(self.largest, max(self.smallest, self.safety * power))

    @final
    def factors(self, ratio: Tensor, previous: Tensor, order: float) -> Tensor:
        """`factor` of each row: all (B,)."""
        ratio = ratio.nan_to_num(nan=math.inf, posinf=math.inf)
        accepted = self._power(ratio, previous.clamp(min=LEAST), order)
        power = torch.where(ratio > 1, _elementary(ratio, order), accepted)
        return (self.safety * power).clamp(self.smallest, self.largest)

    @abstractmethod
    def _power(self, ratio: Any, previous: Any, order: float) -> Any:
        """After an accepted step, without safety and bounds, of numbers or tensors; after a rejected one all follow the
        elementary rule."""


LEAST = 1e-4  # of the previous errors that count


def _elementary(ratio: Any, order: float) -> Any:
    return ratio ** (-1 / order)


@final
@dataclass(frozen=True)
class I(Controller):  # noqa: E742
    """ratio^(-1/order): the elementary controller. Hairer, Norsett, Wanner 1993, eq. II.4.13."""

    def _power(self, ratio: Any, previous: Any, order: float) -> Any:
        return _elementary(ratio, order)


@final
@dataclass(frozen=True)
class PI(Controller):
    """ratio^(-alpha/order) previous^(beta/order) after an accepted step, the elementary rule after a rejected one.

    Smoother steps for mildly stiff problems. Gustafsson 1991; Hairer, Wanner 1996, section IV.2, eq. 2.43 for the
    defaults alpha = 0.7, beta = 0.4.
    """

    alpha: float = 0.7
    beta: float = 0.4

    def _power(self, ratio: Any, previous: Any, order: float) -> Any:
        return ratio ** (-self.alpha / order) * previous ** (self.beta / order)
