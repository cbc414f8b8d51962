"""Ready models of series to be continued or filled in: a history encoder, latent dynamics, a decoder."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.models.trajectory import NeuralODE, NeuralSDE
from ndeflow.nets.mlp import MLP
from ndeflow.nets.recurrent import HistoryEncoder, last_seen
from ndeflow.numerics.solution import Adjoint, Solver


class SeriesEncoder(nn.Module):
    """The latent state (B, hidden) from a batch's seen values and its inputs."""

    def __init__(self, channels: int, inputs: int, hidden: int, *, reverse: bool) -> None:
        super().__init__()
        self.history = HistoryEncoder(channels, hidden, reverse=reverse)
        self.merge = nn.Linear(hidden + inputs, hidden)

    def forward(self, batch: Batch) -> Tensor:
        code = self.history(batch.ts, batch.ys, batch.seen)
        return self.merge(code if batch.inputs is None else torch.cat([code, batch.inputs], dim=-1))


class EncodedODE(NeuralODE):
    """dz/dt = velocity(z) from z = encoder(batch), read by a decoder at each time."""

    def __init__(
        self,
        encoder: nn.Module,
        velocity: nn.Module,
        decoder: nn.Module,
        *,
        solver: Solver | None,
        adjoint: Adjoint | None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        self.encoder, self.velocity, self.decoder = encoder, velocity, decoder

    def field(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.velocity(y)

    def encode(self, batch: Batch) -> Tensor:
        return self.encoder(batch)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return self.decoder(ys)


@final
class ODEInterpolator(EncodedODE):
    """A deterministic latent ODE: the encoder reads the seen values backward to the first time, the latent state
    is solved over all times and decoded. After Rubanova et al. 2019, without the sampled initial state.
    """

    def __init__(
        self,
        channels: int,
        *,
        inputs: int = 0,
        hidden: int = 24,
        width: int = 64,
        depth: int = 2,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        encoder = SeriesEncoder(channels, inputs, hidden, reverse=True)
        velocity = MLP(hidden, hidden, width=width, depth=depth)
        decoder = MLP(hidden, channels, width=width, depth=1)
        super().__init__(encoder, velocity, decoder, solver=solver, adjoint=adjoint)


@final
class ODEForecaster(EncodedODE):
    """The encoder reads the seen values forward to the last of them; from there the latent state is solved over
    the times that follow. At times before, the prediction is the one at the last seen time.
    """

    def __init__(
        self,
        channels: int,
        *,
        inputs: int = 0,
        hidden: int = 24,
        width: int = 64,
        depth: int = 1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        encoder = SeriesEncoder(channels, inputs, hidden, reverse=False)
        velocity = MLP(hidden, hidden, width=width, depth=depth)
        super().__init__(encoder, velocity, nn.Linear(hidden, channels), solver=solver, adjoint=adjoint)

    def times(self, batch: Batch) -> Tensor:
        return from_last_seen(batch)


@final
class SDEForecaster(NeuralSDE):
    """`ODEForecaster` with a diagonal diffusion g(z) > 0: its draws are samples of the predictive distribution."""

    def __init__(
        self,
        channels: int,
        *,
        inputs: int = 0,
        hidden: int = 24,
        width: int = 64,
        depth: int = 1,
        draws: int = 8,
        eval_draws: int = 64,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(noise_size=hidden, draws=draws, eval_draws=eval_draws, solver=solver, adjoint=adjoint)
        self.encoder = SeriesEncoder(channels, inputs, hidden, reverse=False)
        self.velocity = MLP(hidden, hidden, width=width, depth=depth)
        self.scale = MLP(hidden, hidden, width=width, depth=depth)
        self.decoder = nn.Linear(hidden, channels)

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.velocity(y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return nn.functional.softplus(self.scale(y))

    def encode(self, batch: Batch) -> Tensor:
        return self.encoder(batch)

    def times(self, batch: Batch) -> Tensor:
        return from_last_seen(batch)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return self.decoder(ys)


def from_last_seen(batch: Batch) -> Tensor:
    """The batch's times (B, T), those before the last seen one moved to it: a solve over them starts there."""
    origin = batch.ts.gather(1, last_seen(batch.seen)[:, None])
    return torch.maximum(batch.ts, origin)
