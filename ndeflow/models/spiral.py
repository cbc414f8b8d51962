"""The neural SDE of the cubic spiral."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from ndeflow.models.trajectory import NeuralSDE
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.solution import Adjoint, Solver


@final
class SpiralSDE(NeuralSDE):
    """dy = f(y^3) dt + (W y + b) dW from the first seen values: f a network with one tanh layer, diagonal noise, Ito.

    That of Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", section 4.2.1, for `CubicSpiral`. width: of the
    hidden layer.
    """

    reads_inputs = False

    def __init__(
        self,
        channels: int = 2,
        *,
        width: int = 50,
        draws: int = 1,
        eval_draws: int = 1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(noise_size=channels, draws=draws, eval_draws=eval_draws, solver=solver, adjoint=adjoint)
        self.velocity = MLP(channels, channels, width=width, depth=1, activation=nn.Tanh)
        self.spread = nn.Linear(channels, channels)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.velocity(y**3)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.spread(y)
