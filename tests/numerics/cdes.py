"""Controlled equations along all kinds of paths, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndeflow.numerics.observations import augment
from ndeflow.numerics.paths import ControlPath, Hermite, Interpolation, Linear
from ndeflow.numerics.rectilinear import Rectilinear
from ndeflow.numerics.splines import NaturalCubic

KINDS: dict[str, Interpolation] = {
    "linear": Linear.through,
    "hermite": Hermite.through,
    "natural_cubic": NaturalCubic.through,
    "rectilinear": Rectilinear.through,
}
ROWS, TIMES, CHANNELS, HIDDEN = 3, 6, 2, 2


class Response(nn.Module):
    """tanh(A z + b), (B, HIDDEN, 1 + CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.lin = nn.Linear(HIDDEN, HIDDEN * (1 + CHANNELS)).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.lin(z)).unflatten(-1, (HIDDEN, 1 + CHANNELS))


def irregular(own: bool, seed: int = 0, times: int = TIMES) -> Tensor:
    """Times (T,), or each row's own (B, T) with padding in the second row."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, times) if own else (times,)
    ts = torch.rand(shape, dtype=torch.float64, generator=generator).add(0.1).cumsum(dim=-1)
    if own:
        ts[1, -2:] = ts[1, -3]
    return ts


def values(seed: int = 0, times: int = TIMES) -> tuple[Tensor, Tensor]:
    """Values and mask (B, T, C), about a third missing."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(ROWS, times, CHANNELS, dtype=torch.float64, generator=generator)
    return xs, torch.rand(xs.shape, generator=generator) < 0.7


def drive(kind: str, ts: Tensor, xs: Tensor, mask: Tensor) -> ControlPath:
    """The path of a kind with time as its first channel."""
    return KINDS[kind](ts, *augment(ts, xs, mask))
