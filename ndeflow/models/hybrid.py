"""Known physics plus a learned correction."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.models.trajectory import NeuralODE, first_seen
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.solution import Adjoint, Solver


@final
class HybridODE(NeuralODE):
    """Positive quantities y, a known equation and learned growth rates: dy/dt = known(t, y) + y * network(log y).

    The solve runs in u = log y, du/dt = known(t, y) / y + network(u), so that y stays positive exactly. A
    universal differential equation (Rackauckas et al. 2020). The start is the first seen value, times a learned
    factor. width=0 leaves the network out: the known equation alone, fitted in the same way.

    known: a field of y (B, C) in the data's own units, its parameters learned. correction: largest absolute
    rate of the network, in 1 / time.
    """

    reads_inputs = False

    def __init__(
        self,
        known: nn.Module,
        channels: int,
        *,
        width: int = 16,
        correction: float = 0.1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        self.known, self.correction = known, correction
        self.network = MLP(channels, channels, width=width, depth=1, final=nn.Tanh()) if width else None
        self.start = nn.Parameter(torch.zeros(channels))

    def field(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        quantity = y.exp()
        rate = self.known(t, quantity) / quantity
        return rate if self.network is None else rate + self.correction * self.network(y)

    def encode(self, batch: Batch) -> Tensor:
        return first_seen(batch).log() + self.start

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return ys.exp()
