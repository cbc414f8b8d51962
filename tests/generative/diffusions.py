"""Diffusions whose densities are known at all times."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ndeflow.diffusion import Potential, Schedule
from ndeflow.generative.schedules import OrnsteinUhlenbeck, VarianceExploding, VariancePreserving

F64 = torch.float64
SCHEDULES = [VariancePreserving(), VarianceExploding(t_min=1e-3, sigma_max=5.0), OrnsteinUhlenbeck()]


class Mixture(Potential):
    """Of data N(m_k, s_k^2 I) with weights w_k: p_t = sum_k w_k N(alpha m_k, (alpha^2 s_k^2 + sigma^2) I)."""

    def __init__(self, schedule: Schedule, means: list[list[float]], stds: list[float], weights: list[float]) -> None:
        self.schedule = schedule
        self.means, self.stds, self.weights = (torch.tensor(v, dtype=F64) for v in (means, stds, weights))

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma, *_ = self.schedule(t)
        variance = (alpha * self.stds).square() + sigma.square()  # (N, K)
        distance = (x[:, None] - alpha[..., None] * self.means).square().sum(dim=-1)
        size = x.shape[1]
        terms = self.weights.log() - distance / (2 * variance) - size / 2 * (2 * math.pi * variance).log()
        return torch.logsumexp(terms, dim=-1)


class Bell(Potential):
    """-x^2 / (2 v(t)) - log(2 pi v(t)) / 2 in one dimension, of any v > 0: solves no equation unless v does."""

    def __init__(self, schedule: Schedule, variance: Callable[[Tensor], Tensor]) -> None:
        self.schedule, self.variance = schedule, variance

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        v = self.variance(t)
        return (-x.square() / (2 * v) - (2 * math.pi * v).log() / 2).sum(dim=-1)


def gaussian(schedule: Schedule) -> Mixture:
    return Mixture(schedule, [[0.4, -0.3]], [0.7], [1.0])


def three(schedule: Schedule) -> Mixture:
    return Mixture(schedule, [[1.0, 0.0], [-0.5, 0.8], [0.0, -1.2]], [0.4, 0.6, 0.5], [0.5, 0.3, 0.2])


def places(schedule: Schedule, count: int = 64, size: int = 2) -> tuple[Tensor, Tensor]:
    """t (count, 1) over the whole time and x (count, size) where there is mass."""
    generator = torch.Generator().manual_seed(1)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(count, 1, dtype=F64, generator=generator)
    alpha, sigma, *_ = schedule(t)
    return t, (alpha + sigma) * torch.randn(count, size, dtype=F64, generator=generator)
