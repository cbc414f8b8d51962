"""An epidemic whose infected are counted and whose susceptible are not."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.models.trajectory import NeuralODE, first_seen
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.solution import Adjoint, Solver


@final
class HybridSIR(NeuralODE):
    """Susceptible and infected fractions s, i of a population, with a learned correction of the infection rate.

    ds/dt = -beta(s, i) s i,  di/dt = beta(s, i) s i - gamma i (Kermack & McKendrick 1927), with
    beta(s, i) = beta exp(correction * network(log s, log i)), the network in (-1, 1); width=0 leaves it out. Solved
    for log s and log i, so that both stay positive. The one channel of the data is the number infected; the start is
    its first seen value times a learned factor, everyone else susceptible.

    population: number of people. rates are per unit of model time.
    """

    reads_inputs = False

    def __init__(
        self,
        population: float,
        *,
        width: int = 8,
        correction: float = 0.5,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        self.population, self.correction = population, correction
        self.log_rates = nn.Parameter(torch.tensor([0.0, -1.0]))  # log beta, log gamma
        self.start = nn.Parameter(torch.zeros(1))
        self.network = MLP(2, 1, width=width, depth=1, final=nn.Tanh()) if width else None

    def field(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        beta, gamma = self.log_rates.exp()
        if self.network is not None:
            beta = beta * (self.correction * self.network(y)).exp()
        s, i = y.exp().split(1, dim=-1)
        return torch.cat([-beta * i, beta * s - gamma], dim=-1)

    def encode(self, batch: Batch) -> Tensor:
        infected = first_seen(batch) / self.population * self.start.exp()
        return torch.cat([torch.log1p(-infected), infected.log()], dim=-1)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        return self.population * ys[..., 1:].exp()
