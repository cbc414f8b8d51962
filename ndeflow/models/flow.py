"""Densities carried by a flow: continuous normalizing flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, Output
from ndeflow.fields.concat_squash import ConcatSquashField
from ndeflow.models.base import Model
from ndeflow.numerics.derivatives import Divergence, ExactDivergence
from ndeflow.numerics.solution import Adjoint, Solution, Solver


@final
class NormalizingFlow(Model):
    """log p(x) = log N(z(T); 0, I) + int_0^T tr df/dz dt, along dz/dt = f(t, z) from z(0) = x: prediction (B,), nats.

    A point is a series of one vector, (B, 1, C); densities are those of the model's units. Chen, Rubanova, Bettencourt,
    Duvenaud 2018, section 4; Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, "FFJORD". channels: C. end: T.
    width, depth, activation: as in `ConcatSquashField`. divergence: how training computes the trace, exactly by
    default; evaluation always does. Raises ValueError for an end that is not positive.
    """

    reads_inputs = False

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.Tanh,
        end: float = 1.0,
        divergence: Divergence | None = None,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        if not end > 0:
            raise ValueError(f"expected a positive end of the flow, got {end}")
        self.channels, self.end = channels, end
        self.velocity = ConcatSquashField(channels, width=width, depth=depth, activation=activation)
        self.exact = ExactDivergence()
        self.divergence = divergence or self.exact

    @property
    def dynamics(self) -> nn.Module:
        return self.velocity

    def forward(self, batch: Batch) -> Output:
        density, solution = self._flow(points_of(batch))
        return Output(density, (solution,))

    def log_density(self, x: Tensor) -> Tensor:
        """log p (N,) at points x (N, C), in nats and the model's units."""
        return self._flow(x)[0]

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Points (count, C) of the density, in the model's units: normal ones at T, carried back to time 0."""
        like = next(self.parameters())
        z = torch.randn(count, self.channels, generator=torch.Generator().manual_seed(seed)).to(like)
        return self.solve(z, like.new_tensor([self.end, 0.0]), regularized=False).ys[:, -1]

    def _flow(self, x: Tensor) -> tuple[Tensor, Solution]:
        divergence = self.divergence if self.training else self.exact
        solution = self.solve(x, x.new_tensor([0.0, self.end]), integrands=((divergence, divergence.own(x)),))
        return standard_normal(solution.ys[:, -1]) + solution.integrals[:, -1, 0], solution


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) (B,) at z (B, C)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)


def points_of(batch: Batch) -> Tensor:
    """The vectors (B, C) of series of one time each. Raises ValueError for longer ones and missing values."""
    if batch.ys.shape[1] != 1 or not bool(batch.mask.all()):
        raise ValueError(
            f"expected whole vectors, series of one time each, got shape {tuple(batch.ys.shape)} with "
            f"{int((~batch.mask).sum())} missing values; give one row an id, and leave out those with gaps"
        )
    return batch.ys[:, 0]
