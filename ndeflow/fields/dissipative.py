"""Right-hand sides that draw any two solutions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ndeflow.nets.lipschitz_mlp import LipschitzMLP
from ndeflow.nets.time import with_time


@final
@dataclass(frozen=True)
class Dissipation:
    """How strongly a drift -rate z + N(t, z, x) pulls, and how much its network N may stretch.

    Its one-sided Lipschitz constant is at most -K, K = rate - lipschitz: <f(z) - f(z'), z - z'> <= -K |z - z'|^2.
    Raises ValueError unless 0 < lipschitz < rate.
    """

    rate: float = 2.0
    lipschitz: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lipschitz < self.rate:
            raise ValueError(
                "expected 0 < lipschitz < rate, so that solutions draw together, got "
                f"lipschitz={self.lipschitz}, rate={self.rate}; raise the rate or lower lipschitz"
            )

    @property
    def contraction(self) -> float:
        """K."""
        return self.rate - self.lipschitz


@final
class DissipativeField(nn.Module):
    """dz/dt = -rate z + N([t, z, x]), z (B, ..., size), with N a `LipschitzMLP` of constant dissipation.lipschitz.

    The constant bounds the change with x as well. inputs, time: as in `MLPField`.
    """

    def __init__(
        self,
        size: int,
        dissipation: Dissipation,
        *,
        inputs: int = 0,
        width: int = 64,
        depth: int = 2,
        time: bool = True,
    ) -> None:
        super().__init__()
        self.rate, self.time = dissipation.rate, time
        self.net = LipschitzMLP(time + size + inputs, size, lipschitz=dissipation.lipschitz, width=width, depth=depth)

    def forward(self, t: Tensor, z: Tensor, *x: Tensor) -> Tensor:
        seen = torch.cat([z, *x], dim=-1) if x else z
        return self.net(with_time(t, seen) if self.time else seen) - self.rate * z
