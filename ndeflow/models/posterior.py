"""Stochastic differential equations conditioned on data, and how far their paths are from the unconditioned ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.fields.ode import MLPField
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.derivatives import Evaluation, Integrand
from ndeflow.numerics.field import SDE, required_path


class PosteriorSDE(SDE):
    """dz = f(t, z, context) dt + sigma(t, z) dW beside a prior dz = h(t, z) dt + sigma(t, z) dW: write all three.

    `drift` is f, `prior` is h and `diffusion` is sigma > 0, (B, size), each component with its own noise. One sigma
    for both: paths with different ones have infinite divergence. f and h are of the same calculus, sde_type "ito" or
    "stratonovich"; the drift correction between these cancels in f - h. Li, Wong, Chen, Duvenaud 2020, "Scalable
    gradients for stochastic differential equations", section 5.
    """

    def __init__(self, size: int, *, sde_type: str = "ito") -> None:
        super().__init__(noise_type="diagonal", sde_type=sde_type, noise_size=size)

    @abstractmethod
    def prior(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift of the prior, (B, size) at y (B, size)."""


@final
class PathKL(Integrand):
    """The integrand |(f - h) / sigma|^2 / 2 of a `PosteriorSDE`, (B,).

    The expectation of its integral is the divergence of the posterior's paths from the prior's, given the start
    (Girsanov's theorem; Li et al. 2020, section 5). On Euler's steps its sum is that of the two chains exactly.
    """

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        spread = at.field.diffusion(at.t, at.y) if at.context is None else at.field.diffusion(at.t, at.y, at.context)
        return ((at.dy - at.field.prior(at.t, at.y)) / spread).square().sum(dim=-1) / 2


@final
class SteeredSDE(PosteriorSDE):
    """A prior with networks h and sigma, in Ito's sense, and a posterior that a network u steers: f = h + sigma u.

    The context is a control path X of inputs + 1 channels: what u(z, x) is told, and last how much it steers, 1, or 0
    where the prior drives. Any f has such a u, since sigma > 0; the divergence's rate is |u|^2 / 2, and u starts near
    0. |h| < 1, by a tanh, and scale / 100 < sigma < scale, by a sigmoid: unbounded ones make Euler steps explode, and
    the divergence with a sigma that vanishes. y: (B, size). activation: as in `MLPField`.
    Raises ValueError for a scale that is not positive.
    """

    def __init__(
        self,
        size: int,
        *,
        inputs: int,
        width: int = 64,
        depth: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__(size)
        if scale <= 0:
            raise ValueError(f"expected a positive scale of the diffusion, got {scale}; use LatentODE without one")
        self.scale = scale
        self.velocity, self.spread = (
            MLPField(size, width=width, depth=depth, time=False, activation=activation, bounded=bounded)
            for bounded in (True, False)
        )
        self.steering = MLP(size + inputs, size, width=width, depth=depth, activation=activation, last=0.1)

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        x = required_path(*context).value(t)
        steering = self.steering(torch.cat([y, x[..., :-1]], dim=-1))
        return self.prior(t, y) + x[..., -1:] * self.diffusion(t, y) * steering

    def prior(self, t: Tensor, y: Tensor) -> Tensor:
        return self.velocity(t, y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.scale * (0.01 + 0.99 * self.spread(t, y).sigmoid())
