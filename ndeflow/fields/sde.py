"""Free right-hand sides of stochastic differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from ndeflow.fields.hidden import HiddenSDE
from ndeflow.fields.ode import MLPField
from ndeflow.nets.constant import Constant
from ndeflow.nets.mlp import MLP
from ndeflow.numerics.field import SDE


@final
class DiagonalSDE(HiddenSDE):
    """dy = f(t, y, x) dt + g(t, y) dW, Ito, each component with its own noise; f and g are networks.

    0 < g < scale, by a sigmoid, and g starts near scale / 2: an unbounded diffusion makes Euler steps explode.
    y: (B, size). inputs: channels of x (B, inputs), such as a control path's value, seen by the drift alone; 0: none
    is given. time, activation: as in `MLPField`. Raises ValueError for a scale that is not positive.
    """

    def __init__(
        self,
        size: int,
        *,
        inputs: int = 0,
        width: int = 64,
        depth: int = 1,
        time: bool = True,
        activation: Callable[[], nn.Module] = nn.SiLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__(size)
        if scale <= 0:
            raise ValueError(f"expected a positive scale of the diffusion, got {scale}; use MLPField for an ODE")
        self.scale = scale
        self.velocity = MLPField(size, inputs=inputs, width=width, depth=depth, time=time, activation=activation)
        self.spread = MLPField(size, width=width, depth=depth, time=time, activation=activation)

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.velocity(t, y, *context)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.scale * self.spread(t, y).sigmoid()


@final
class ScalarSDE(SDE):
    """dx = f(x) dt + g(x) dW on one channel, Ito; f and log(exp(g) - 1) are networks.

    x: (B, 1). drift_width, diffusion_width: units of their one hidden layer; 0: f linear, g constant.
    """

    def __init__(
        self,
        *,
        drift_width: int = 16,
        diffusion_width: int = 16,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=1)
        self.velocity = MLP(1, 1, width=drift_width or 1, depth=min(drift_width, 1), activation=activation)
        self.spread = (
            MLP(1, 1, width=diffusion_width, depth=1, activation=activation) if diffusion_width else Constant()
        )

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.velocity(y)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return nn.functional.softplus(self.spread(y))
