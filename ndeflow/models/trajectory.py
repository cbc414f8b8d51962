"""Families whose state is solved over the times of a batch: the user writes the right-hand side."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, Output
from ndeflow.models.base import Model, OwnField
from ndeflow.models.draws import check_draws, solve_draws
from ndeflow.numerics.field import SDE
from ndeflow.numerics.solution import Adjoint, Solver


class TrajectoryModel(Model):
    """A state solved from what is seen of each row: `encode`, `decode`, `context` and `times` may be overridden."""

    def encode(self, batch: Batch) -> Tensor:
        """The initial state (B, *state) at the first time; by default each channel's first seen value."""
        return first_seen(batch)

    def decode(self, ys: Tensor, batch: Batch) -> Tensor:
        """The prediction (B, T, C) from the states (B, T, *state); by default the states."""
        return ys

    def context(self, batch: Batch) -> Any:
        """What the solve is conditioned on; nothing by default."""
        return None

    def times(self, batch: Batch) -> Tensor:
        """Where the state is needed, (B, T'), from the encoded start on; by default at every time of the batch."""
        return batch.ts


class NeuralODE(TrajectoryModel):
    """dy/dt = field(t, y): write `field`, optionally `encode`, `decode` and `context`."""

    def __init__(self, *, solver: Solver | None = None, adjoint: Adjoint | None = None) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        object.__setattr__(self, "_dynamics", OwnField(self))  # not a submodule: its parameters are the model's own

    @property
    def dynamics(self) -> nn.Module:
        return self.__dict__["_dynamics"]

    @abstractmethod
    def field(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        """dy/dt (B, *state) at y (B, *state); t broadcasts against y. `context` is given if the model has one."""

    def forward(self, batch: Batch) -> Output:
        solution = self.solve(self.encode(batch), self.times(batch), context=self.context(batch))
        return Output(self.decode(solution.ys, batch), (solution,))


class OwnSDE(SDE):
    """A model's `drift` and `diffusion` methods as an SDE; its parameters are the model's."""

    def __init__(self, model: NeuralSDE, noise_size: int) -> None:
        super().__init__(noise_type=model.noise_type, sde_type=model.sde_type, noise_size=noise_size)
        self.model = model

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        return self.model.drift(t, y, *context)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.model.diffusion(t, y, *context)


class NeuralSDE(TrajectoryModel):
    """dy = drift(t, y) dt + diffusion(t, y) dW: write both, optionally `encode`, `decode` and `context`.

    noise_size: Brownian channels; the state's size where the noise is diagonal.
    draws, eval_draws: sampled paths per row in training and in evaluation. More than one: predictions are
    (S, B, ...). A path is a function of the run's seed, the training step and the row's `batch.index`.
    """

    noise_type: ClassVar[str] = "diagonal"
    sde_type: ClassVar[str] = "ito"

    def __init__(
        self,
        *,
        noise_size: int,
        draws: int = 1,
        eval_draws: int = 1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        check_draws(draws, eval_draws)
        self.draws, self.eval_draws = draws, eval_draws
        object.__setattr__(self, "_dynamics", OwnSDE(self, noise_size))

    @property
    def dynamics(self) -> nn.Module:
        return self.__dict__["_dynamics"]

    @abstractmethod
    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        """(B, d) at y (B, d)."""

    @abstractmethod
    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        """(B, d) where the noise is diagonal, else (B, d, m)."""

    def forward(self, batch: Batch) -> Output:
        count = self.draws if self.training else self.eval_draws
        return solve_draws(self, self.encode(batch), self.times(batch), self.context(batch), batch, self.decode, count)


def first_seen(batch: Batch) -> Tensor:
    """Each channel's first seen value (B, C); 0 where a channel is never seen."""
    first = batch.seen.to(torch.int8).argmax(dim=1, keepdim=True)
    value = batch.ys.gather(1, first).squeeze(1)
    return torch.where(batch.seen.any(dim=1), value, torch.zeros_like(value))
