"""Classifiers of vectors that are seen once: the vector, or a linear function of it, is the initial state."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, Output
from ndeflow.fields.timed import TimedField
from ndeflow.models.base import Model
from ndeflow.models.trajectory import NeuralSDE, first_seen
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.solution import Adjoint, Solver


@final
class PointClassifier(Model):
    """logits = readout(z(1)), dz/dt = f(t, z) with z(0) the vector itself; prediction (B, outputs).

    Of a series each channel's first seen value counts. The classifier of Pal, Ma, Shah, Rackauckas 2021, "Opening the
    Blackbox", section 4.1.1, whose cost is that of the solve alone. channels: length of the vector. outputs: classes,
    or numbers to regress.
    """

    reads_inputs = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int = 64,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        self.flow = TimedField(channels, width=width)
        self.readout = nn.Linear(channels, outputs)

    @property
    def dynamics(self) -> nn.Module:
        return self.flow

    def forward(self, batch: Batch) -> Output:
        z0 = first_seen(batch)
        solution = self.solve(z0, torch.tensor([0.0, 1.0], dtype=z0.dtype, device=z0.device))
        return Output(self.readout(solution.ys[:, -1]), (solution,))


@final
class PointSDEClassifier(NeuralSDE):
    """logits = readout(z(1)), dz = f(z) dt + (W z + b) dW from z(0) = a linear function of the vector; Ito, diagonal.

    f has one tanh layer of `width` units. In evaluation the logits of `eval_draws` paths are given: (S, B, outputs).
    The classifier of Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", section 4.2.2. channels, outputs: as of
    `PointClassifier`. hidden: length of z.
    """

    reads_inputs = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        width: int = 64,
        draws: int = 1,
        eval_draws: int = 10,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(noise_size=hidden, draws=draws, eval_draws=eval_draws, solver=solver, adjoint=adjoint)
        self.initial, self.readout = nn.Linear(channels, hidden), nn.Linear(hidden, outputs)
        self.velocity = MLP(hidden, hidden, width=width, depth=1, activation=nn.Tanh)
        self.spread = nn.Linear(hidden, hidden)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.velocity(y)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.spread(y)

    def encode(self, batch: Batch) -> Tensor:
        return self.initial(first_seen(batch))

    def times(self, batch: Batch) -> Tensor:
        return torch.arange(2.0, device=batch.ts.device).to(batch.ts).expand(len(batch.ts), -1)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return self.readout(ys[:, -1])
