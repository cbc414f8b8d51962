"""Free right-hand sides of controlled differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from ndeflow.nets.mlp import MLP


@final
class CDEField(nn.Module):
    """f(z) of dz = f(z) dX: z (B, size) -> (B, size, channels), ending in tanh; time enters as a channel of X.

    Kidger, Morrill, Foster, Lyons 2020, "Neural controlled differential equations"; without the bound the product
    with dX/dt easily makes the state explode. channels: those of the control path. activation: as in `MLP`.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        width: int = 64,
        depth: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        self.net = MLP(size, size * channels, width=width, depth=depth, activation=activation, final=nn.Tanh())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y).unflatten(-1, (self.size, self.channels))
