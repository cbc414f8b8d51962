"""A scalar diffusion, observed without noise: its normal law at later times."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from ndeflow.contracts import Batch, Gaussian
from ndeflow.fields.moments import Moments, root
from ndeflow.fields.sde import ScalarSDE
from ndeflow.models.base import Model
from ndeflow.models.trajectory import first_seen
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solution import Adjoint, Solver


@final
class ScalarDiffusion(Model):
    """dx = f(x) dt + g(x) dW: mean and standard deviation of x at all times, given the first seen value.

    Solved for its `Moments`. One Euler step a save interval, the default, is the transition of Euler and Maruyama,
    whose likelihood is the usual one for a diffusion seen at times close to one another (Florens-Zmirou 1989; Kessler
    1997). drift_width, diffusion_width: as of `ScalarSDE`. The data have one channel.
    """

    reads_inputs = False

    def __init__(
        self,
        *,
        drift_width: int = 16,
        diffusion_width: int = 16,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver or FixedRungeKutta("euler"), adjoint=adjoint)
        self.moments = Moments(ScalarSDE(drift_width=drift_width, diffusion_width=diffusion_width))

    @property
    def dynamics(self) -> nn.Module:
        return self.moments

    def forward(self, batch: Batch) -> Gaussian:
        start = first_seen(batch)
        if start.shape[1] != 1:
            raise ValueError(f"expected one channel for ScalarDiffusion, got {start.shape[1]}; set data's columns")
        solution = self.solve(torch.cat([start, torch.zeros_like(start)], dim=1), batch.ts)
        mean, variance = solution.ys.split(1, dim=-1)
        return Gaussian(mean, (solution,), std=root(variance))
