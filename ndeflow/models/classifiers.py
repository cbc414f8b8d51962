"""Ready classifiers (and regressors) of whole series: a hidden state driven by the observations, read at its end.

The three share path, initial state and readout, so that a comparison between them is a comparison of dynamics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.fields.blind import Blind
from ndeflow.fields.cde import CDEField
from ndeflow.fields.hidden import HiddenSDE
from ndeflow.fields.ode import MLPField
from ndeflow.fields.sde import DiagonalSDE
from ndeflow.models.driven import PathDriven, path_channels
from ndeflow.numerics.field import ByValue, Controlled
from ndeflow.numerics.paths import Interpolation
from ndeflow.numerics.solution import Adjoint, Solver


class PathClassifier(PathDriven):
    """logits = readout(z(T)) with z(t0) a linear function of the path's first value; prediction (B, outputs).

    channels: C of the data. outputs: classes, or numbers to regress.
    """

    reads_inputs = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        dynamics: nn.Module,
        *,
        hidden: int,
        interpolation: Interpolation | None,
        counts: bool,
        thinning: float,
        draws: int = 1,
        eval_draws: int = 1,
        solver: Solver | None,
        adjoint: Adjoint | None,
    ) -> None:
        super().__init__(interpolation=interpolation, counts=counts, thinning=thinning, draws=draws,
                         eval_draws=eval_draws, solver=solver, adjoint=adjoint)  # fmt: skip
        self.initial = nn.Linear(path_channels(channels, counts), hidden)
        self.flow = dynamics
        self.readout = nn.Linear(hidden, outputs)

    @property
    def dynamics(self) -> nn.Module:
        return self.flow

    def encode(self, x0: Tensor, batch: Batch) -> Tensor:
        return self.initial(x0)

    def decode(self, zs: Tensor, batch: Batch) -> Tensor:
        return self.readout(zs[:, -1])


@final
class CDEClassifier(PathClassifier):
    """Neural CDE classifier: dz = f(z) dX, with f ending in tanh. Kidger et al. 2020, eq. 4-5."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        width: int = 64,
        depth: int = 1,
        interpolation: Interpolation | None = None,
        counts: bool = False,
        thinning: float = 0.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        field = CDEField(hidden, path_channels(channels, counts), width=width, depth=depth)
        super().__init__(channels, outputs, Controlled(field), hidden=hidden, interpolation=interpolation,
                         counts=counts, thinning=thinning, solver=solver, adjoint=adjoint)  # fmt: skip


@final
class ODEClassifier(PathClassifier):
    """Neural ODE with the path as input: dz/dt = f(t, z, X(t))."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        width: int = 64,
        depth: int = 1,
        interpolation: Interpolation | None = None,
        counts: bool = False,
        thinning: float = 0.0,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        field = MLPField(hidden, inputs=path_channels(channels, counts), width=width, depth=depth)
        super().__init__(channels, outputs, ByValue(field), hidden=hidden, interpolation=interpolation,
                         counts=counts, thinning=thinning, solver=solver, adjoint=adjoint)  # fmt: skip


@final
class SDEClassifier(PathClassifier):
    """Neural SDE with the path as input of its drift: dz = f(t, z, X(t)) dt + g(t, z) dW, diagonal, Ito.

    field: makes f and g, called as field(hidden, inputs=path channels, width=width, depth=depth); by default
    `DiagonalSDE`, a free diffusion; those of `ndeflow.fields.stable` are others. blind: the drift does not see the
    path, of which the model then knows the first value alone: the baseline that tells what the rest is worth.
    In evaluation the logits of `eval_draws` sampled paths are given, (S, B, outputs).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 32,
        width: int = 64,
        depth: int = 1,
        field: Callable[..., HiddenSDE] | None = None,
        blind: bool = False,
        interpolation: Interpolation | None = None,
        counts: bool = False,
        thinning: float = 0.0,
        draws: int = 1,
        eval_draws: int = 8,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
    ) -> None:
        inputs = 0 if blind else path_channels(channels, counts)
        sde = (field or DiagonalSDE)(hidden, inputs=inputs, width=width, depth=depth)
        super().__init__(channels, outputs, Blind(sde) if blind else ByValue(sde), hidden=hidden,
                         interpolation=interpolation, counts=counts, thinning=thinning, draws=draws,
                         eval_draws=eval_draws, solver=solver, adjoint=adjoint)  # fmt: skip

    @property
    def sde(self) -> HiddenSDE:
        return self.flow.sde  # pyright: ignore[reportReturnType]

    def encode(self, x0: Tensor, batch: Batch) -> Tensor:
        return self.sde.state(super().encode(x0, batch))

    def decode(self, zs: Tensor, batch: Batch) -> Tensor:
        return super().decode(self.sde.read(zs), batch)
