"""From noise back to data: the equations whose solutions have the marginals of a diffusion, given its scores."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ndeflow.diffusion import Schedule, Score
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE
from ndeflow.numerics.solution import Solution, Solver
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic


@final
class ProbabilityFlow(nn.Module):
    """dx/dt = f x - g^2 / 2 score(t, x), in the diffusion's own time; x: (B, d). Song et al. 2021, eq. 13."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        f, g_squared = self.score.schedule.coefficients(t)
        return f * y - 0.5 * g_squared * self.score.score(t, y)


@final
class ReverseSDE(SDE):
    """dx = -(f x - g^2 score(t, x)) ds + g dW in reversed time s = -t, from -t_max to -t_min; x: (B, size).

    Anderson 1982; Song et al. 2021, eq. 6. The noise does not depend on x, so that the integrals of Ito and of
    Stratonovich agree: it is called Stratonovich's for the sake of `Stochastic("heun")`.
    """

    def __init__(self, score: Score, size: int) -> None:
        super().__init__(noise_type="diagonal", sde_type="stratonovich", noise_size=size)
        self.score = score

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        f, g_squared = self.score.schedule.coefficients(-t)
        return g_squared * self.score.score(-t, y) - f * y

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.score.schedule.coefficients(-t).g_squared.sqrt().expand_as(y)


def prior_sample(schedule: Schedule, count: int, size: int, seed: int, *, like: Tensor) -> Tensor:
    """(count, size) draws of N(0, prior_std^2 I), a function of the seed, of the dtype and device of `like`."""
    noise = Brownian(seed).normals(0, 1, size, batch=count, dtype=like.dtype, device=like.device)
    return schedule.prior_std * noise[0]


def geometric(schedule: Schedule, steps: int, *, like: Tensor) -> Tensor:
    """(steps + 1,) times from t_max down to t_min, each the same multiple of the one before; float64 where there is."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    fractions = torch.linspace(0, 1, steps + 1, dtype=dtype, device=like.device)
    return schedule.t_max * (schedule.t_min / schedule.t_max) ** fractions


def flow_back(score: Score, x: Tensor, *, solver: Solver | None = None) -> Solution:
    """The probability flow from x (B, d) at t_max down to t_min, where `ys[:, -1]` are its samples."""
    ends = geometric(score.schedule, 1, like=x)
    return solve(ProbabilityFlow(score), x, ends, solver=solver)


def diffuse_back(score: Score, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """(B, d) samples of the reverse SDE at t_min, from x (B, d) at t_max.

    `steps` of Heun's method at `geometric` times, weak order 2, and of the last step the drift alone, by Euler's:
    noise that no later step takes away would blur the samples.
    """
    times = -geometric(score.schedule, steps, like=x)
    sde = ReverseSDE(score, x.shape[1])
    late = solve(sde, x, times[:-1], solver=Stochastic("heun"), noise=Brownian(seed)).ys[:, -1]
    return late + (times[-1] - times[-2]).to(x.dtype) * sde.drift(times[-2].to(x.dtype), late)
