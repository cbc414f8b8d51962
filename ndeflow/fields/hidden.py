"""Stochastic right-hand sides for the hidden state of a model."""

from __future__ import annotations

from abc import ABC

from torch import Tensor

from ndeflow.numerics.field import SDE


class HiddenSDE(SDE, ABC):
    """A diagonal Ito SDE for a hidden state z (B, size), solved in coordinates y (B, coordinates) that it may choose.

    coordinates: as many as `size` by default, and then y is z. A model solves from `state(z0)` and reads `read(y)`.
    """

    def __init__(self, size: int, *, coordinates: int | None = None) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=coordinates or size)

    def state(self, z: Tensor) -> Tensor:
        """(..., coordinates) that stand for the hidden state z (..., size)."""
        return z

    def read(self, y: Tensor) -> Tensor:
        """The hidden state (..., size) at y (..., coordinates)."""
        return y
