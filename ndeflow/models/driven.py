"""Models driven by a control path through the observations: neural CDEs and their relatives."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch, Output
from ndeflow.models.base import Model, OwnField
from ndeflow.models.draws import check_draws, solve_draws
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.observations import augment
from ndeflow.numerics.paths import ControlPath, Hermite, Interpolation
from ndeflow.numerics.solution import Adjoint, Solver


class PathDriven(Model):
    """A hidden state driven by a path X through the seen observations: write `encode`, `decode`, `dynamics`.

    The path carries time, the C channels and, with `counts`, how often each channel has been observed so far;
    its channel count is `path_channels(C, counts)`.
    interpolation: what makes it of (ts, xs, mask), as `Linear.through` does; None: `Hermite.through`.
    thinning: in training every seen value is hidden with this probability, anew at each step: paths through fewer
    observations of the same series keep a small data set from being learned by heart.
    draws, eval_draws: sampled hidden paths per row where the dynamics are an SDE; more than one: predictions are
    (S, B, ...).
    """

    def __init__(
        self,
        *,
        interpolation: Interpolation | None = None,
        counts: bool = False,
        thinning: float = 0.0,
        draws: int = 1,
        eval_draws: int = 1,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(solver=solver, adjoint=adjoint)
        check_draws(draws, eval_draws)
        if not 0 <= thinning < 1:
            raise ValueError(f"expected thinning in [0, 1), the share of values hidden in training, got {thinning}")
        self.interpolation = interpolation or Hermite.through
        self.counts, self.thinning, self.draws, self.eval_draws = counts, thinning, draws, eval_draws

    @abstractmethod
    def encode(self, x0: Tensor, batch: Batch) -> Tensor:
        """The initial hidden state (B, H) from the path's first value (B, path channels)."""

    @abstractmethod
    def decode(self, zs: Tensor, batch: Batch) -> Tensor:
        """The prediction from the hidden states (B, T', H) at `times`."""

    def control(self, batch: Batch) -> ControlPath:
        """The path: by default the interpolation of what has been seen.

        Cubics with backward differences, where no interpolation is chosen, look no further ahead than to each channel's
        next observation.
        """
        return self.interpolation(batch.ts, *augment(batch.ts, batch.ys, batch.seen, counts=self.counts))

    def times(self, path: ControlPath, batch: Batch) -> Tensor:
        """Where the hidden state is needed, (B, T'), in the path's own time; by default at the first and last knot.

        At every observation: `path.at_observations()`.
        """
        ends = torch.stack([path.knots[..., 0], path.knots[..., -1]], dim=-1)
        return ends.expand(len(batch.ts), -1)

    def forward(self, batch: Batch) -> Output:
        count = self.draws if self.training else self.eval_draws
        path = self.control(self._thinned(batch))
        times = self.times(path, batch)
        z0 = self.encode(path.value(times[:, :1]), batch)
        return solve_draws(self, z0, times, path, batch, self.decode, count)

    def _thinned(self, batch: Batch) -> Batch:
        if not (self.training and self.thinning):
            return batch
        kept = torch.rand(batch.seen.shape, device=batch.seen.device) >= self.thinning
        return batch._replace(seen=batch.seen & kept)


class NeuralCDE(PathDriven):
    """dz = field(t, z) dX (Kidger et al. 2020): write `field`, `encode` and `decode`."""

    def __init__(
        self,
        *,
        interpolation: Interpolation | None = None,
        counts: bool = False,
        thinning: float = 0.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        super().__init__(interpolation=interpolation, counts=counts, thinning=thinning, solver=solver, adjoint=adjoint)
        object.__setattr__(self, "_dynamics", Controlled(OwnField(self)))

    @property
    def dynamics(self) -> nn.Module:
        return self.__dict__["_dynamics"]

    @abstractmethod
    def field(self, t: Tensor, z: Tensor, *context: Any) -> Tensor:
        """(B, H, path channels) at z (B, H)."""


def path_channels(channels: int, counts: bool) -> int:
    """Channels of the control path of `PathDriven`: time, values and, with `counts`, observation counts."""
    return 1 + channels * (2 if counts else 1)
