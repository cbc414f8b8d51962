"""A stochastic differential equation as a generator of paths."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.models.trajectory import NeuralSDE, first_seen
from ndeflow.nets.lipswish import LipSwish
from ndeflow.nets.mlp import MLP
from ndeflow.nets.time import with_time
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.solution import Adjoint, Solver


@final
class SDEGenerator(NeuralSDE):
    """Z0 = zeta(V, Y0), dZ = mu(t, Z) dt + sigma(t, Z) o dW, Y = Y0 + A (Z - Z0): paths from each row's first value.

    V ~ N(0, I) of `initial_noise` numbers, W of `noise_size` channels, general noise, Stratonovich; mu and sigma end in
    tanh. Kidger, Foster, Li, Oberhauser, Lyons 2021, "Neural SDEs as infinite-dimensional GANs", eq. 3; there Y0 is
    generated too. volatility: factor on the initial last layer of sigma.
    """

    reads_inputs = False
    noise_type = "general"
    sde_type = "stratonovich"

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 16,
        width: int = 32,
        depth: int = 1,
        noise_size: int = 3,
        initial_noise: int = 5,
        volatility: float = 1.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(noise_size=noise_size, solver=solver, adjoint=adjoint)
        sizes: dict[str, Any] = {"width": width, "depth": depth, "activation": LipSwish}
        self.initial_noise = initial_noise
        self.initial = MLP(initial_noise + channels, hidden, **sizes)
        self.velocity = MLP(1 + hidden, hidden, **sizes, final=nn.Tanh())
        self.spread = MLP(1 + hidden, hidden * noise_size, **sizes, final=nn.Tanh(), last=volatility)
        self.readout = nn.Linear(hidden, channels, bias=False)

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.velocity(with_time(t, y))

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.spread(with_time(t, y)).unflatten(-1, (y.shape[-1], -1))

    def encode(self, batch: Batch) -> Tensor:
        start = first_seen(batch)
        noise = Brownian(mix(self.noise_seed, INITIAL), batch.index)
        size = {"batch": len(start), "dtype": start.dtype, "device": start.device}
        return self.initial(torch.cat([noise.normals(0, 1, self.initial_noise, **size)[0], start], dim=-1))

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return first_seen(batch).unsqueeze(1) + self.readout(ys - ys[:, :1])


INITIAL = 0x1217  # in place of a solve's number in the seed of V
