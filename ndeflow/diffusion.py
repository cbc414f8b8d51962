"""What a diffusion is to those who train, penalise and sample it: a schedule of noise, and scores of its densities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from ndeflow.contracts import Output


class Level(NamedTuple):
    """Weights of data and noise at a time, and their derivatives in time, shaped as it is."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class Coefficients(NamedTuple):
    """Of the forward equation dx = f x dt + g dW at a time: f, and the square of g."""

    f: Tensor
    g_squared: Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I), for t from t_min to t_max; write `level`.

    t_min > 0, where scores are still finite. prior_std: standard deviation of x_t at t_max, as samplers start from it.
    Raises ValueError for times that are not 0 < t_min < t_max.
    """

    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max:
            raise ValueError(f"expected times 0 < t_min < t_max, got {self.t_min} and {self.t_max}")

    @abstractmethod
    def level(self, t: Tensor) -> Level:
        """alpha, sigma and their derivatives at t > 0."""

    @property
    @abstractmethod
    def prior_std(self) -> float: ...

    @final
    def __call__(self, t: Tensor) -> Level:
        return self.level(t)

    @final
    def coefficients(self, t: Tensor) -> Coefficients:
        """f = alpha' / alpha and g^2 = 2 sigma sigma' - 2 f sigma^2, at t.

        Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, "Score-based generative modeling through stochastic
        differential equations", eq. 5; Karras, Aittala, Aila, Laine 2022, appendix B.
        """
        alpha, sigma, d_alpha, d_sigma = self(t)
        f = d_alpha / alpha
        return Coefficients(f, 2 * sigma * (d_sigma - f * sigma))


@dataclass
class Denoised(Output):
    """Scores at points with noise: prediction (B, d) of the score at t and x_t = alpha(t) x0 + sigma(t) noise.

    t: (B, 1). x_t, noise: (B, d).
    """

    t: Tensor = field(kw_only=True)
    x_t: Tensor = field(kw_only=True)
    noise: Tensor = field(kw_only=True)

    def of(self, rows: Tensor) -> Self:
        return replace(super().of(rows), t=self.t[rows], x_t=self.x_t[rows], noise=self.noise[rows])


class Score(ABC):
    """The scores grad log p_t of a diffusion's densities, known or learned. schedule: of the diffusion."""

    schedule: Schedule

    @abstractmethod
    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """(N, d) at x (N, d); t broadcasts against x."""


class Potential(Score):
    """A score that is the gradient of log p_t, known but for a constant."""

    @abstractmethod
    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        """(N,) at x (N, d); t broadcasts against x."""

    @final
    def score(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda z: self.potential(t, z).sum())(x)
