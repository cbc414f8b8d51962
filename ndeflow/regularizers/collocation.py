"""Where a residual is asked to vanish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor

from ndeflow.diffusion import Denoised, Schedule


class Points(NamedTuple):
    """N points of space and time: t (N, 1), x (N, d), and what the square of a residual counts at them, (N,)."""

    t: Tensor
    x: Tensor
    weight: Tensor


class Collocation(ABC):
    """A choice of points."""

    @abstractmethod
    def points(self, output: Denoised, schedule: Schedule) -> Points:
        """For a training step's noised points."""


@final
@dataclass(frozen=True)
class NoisedPoints(Collocation):
    """The noised points of the batch themselves, of weight sigma(t)^(2 power).

    Residuals grow like a power of 1 / sigma towards the data, and unweighted the smallest times would be all that
    counts. Lai et al. 2023, "FP-Diffusion", take these points, in any dimension.
    """

    power: float = 2.0

    def points(self, output: Denoised, schedule: Schedule) -> Points:
        variance = schedule(output.t).sigma.square().squeeze(-1)
        return Points(output.t, output.x_t, variance**self.power)


@final
@dataclass(frozen=True)
class UniformBox(Collocation):
    """`count` points uniform in [-half_width, half_width]^d and in time, of weight 1; for a few dimensions.

    Deveney et al. 2025. Raises ValueError unless both are positive.
    """

    half_width: float = 3.5
    count: int = 256

    def __post_init__(self) -> None:
        if self.half_width <= 0 or self.count < 1:
            raise ValueError(f"expected a positive half_width and count, got {self.half_width} and {self.count}")

    def points(self, output: Denoised, schedule: Schedule) -> Points:
        return self.draw(schedule, output.x_t)

    def draw(self, schedule: Schedule, like: Tensor, generator: Generator | None = None) -> Points:
        """Points of the dimension, dtype and device of `like` (B, d); generator None: torch's default one."""
        size = like.shape[1]
        u = torch.rand(self.count, 1 + size, dtype=like.dtype, device=like.device, generator=generator)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * u[:, :1]
        return Points(t, self.half_width * (2 * u[:, 1:] - 1), torch.ones_like(u[:, 0]))
