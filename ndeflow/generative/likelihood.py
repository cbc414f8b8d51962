"""Densities of data under a diffusion's probability flow."""

from __future__ import annotations

import math

from torch import Tensor

from ndeflow.diffusion import Score
from ndeflow.generative.reverse import ProbabilityFlow, geometric
from ndeflow.numerics.derivatives import Divergence, ExactDivergence
from ndeflow.numerics.solution import Solver
from ndeflow.numerics.solve import solve


def log_likelihood(
    score: Score, x: Tensor, *, solver: Solver | None = None, divergence: Divergence | None = None
) -> Tensor:
    """log q(x) (N,) at x (N, d), in nats, q the law of the probability flow's samples at t_min.

    log q(x) = log N(x(t_max); 0, prior_std^2 I) + int div(f x - g^2 / 2 s) dt along the flow from x at t_min (Song et
    al. 2021, eq. 39). It is not the density of the reverse SDE's samples but for exact scores. divergence: None: exact.
    """
    divergence = divergence or ExactDivergence()
    times = geometric(score.schedule, 1, like=x).flip(0)
    pairs = ((divergence, divergence.own(x)),)
    solution = solve(ProbabilityFlow(score), x, times, solver=solver, integrands=pairs)
    std = score.schedule.prior_std
    square = (solution.ys[:, -1] / std).square().sum(dim=1)
    normal = -0.5 * square - x.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(std))
    return normal + solution.integrals[:, -1, 0]
