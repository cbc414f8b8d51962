"""Initial value problems with exact solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.paths import ControlPath


@dataclass(frozen=True)
class Exact:
    """field: (t, y) -> dy. y0: (B, D). exact(ts, y0): (B, T, D) at ts (B, T), for a start at time 0."""

    field: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    exact: Callable[[Tensor, Tensor], Tensor]


def _logistic(ts: Tensor, y0: Tensor) -> Tensor:
    t, y = ts.unsqueeze(-1), y0.unsqueeze(1)
    return 1 / (1 + (1 / y - 1) * torch.exp(-t))


LOGISTIC = Exact(
    lambda t, y: y * (1 - y), torch.tensor([[0.1, 0.7], [0.3, 1.6], [0.5, 0.2]], dtype=torch.float64), _logistic
)

FORCED = Exact(  # the rate depends on time
    lambda t, y: torch.cos(t) * y,
    torch.tensor([[0.5, -1.0], [1.5, 2.0], [-0.4, 0.3]], dtype=torch.float64),
    lambda ts, y0: y0.unsqueeze(1) * torch.exp(torch.sin(ts)).unsqueeze(-1),
)

PROBLEMS = {"logistic": LOGISTIC, "forced": FORCED}


class Net(nn.Module):
    """A small smooth field that depends on time; `calls` counts evaluations."""

    def __init__(self, size: int = 2, width: int = 8, dtype: torch.dtype = torch.float64, gain: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.net = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, size)).to(dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(gain)
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y) * torch.cos(t) + torch.sin(2 * t)


class Conditions(NamedTuple):
    """A context of a control path and a tensor."""

    path: ControlPath
    gain: Tensor


class Driven(nn.Module):
    """dy/dt from the path's slope and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.4, -0.8], [0.2, 0.9]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor, context: Conditions) -> Tensor:
        return torch.tanh(y @ self.weight + context.gain) * context.path.derivative(t)


def start(rows: int = 3, size: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Fixed initial states (rows, size)."""
    return torch.linspace(-1, 1, rows * size, dtype=torch.float64).view(rows, size).to(dtype)


def order(sizes: list[float], errors: list[float]) -> float:
    """The slope of log error over log size."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, errors))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest entry of b."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


class Mixed(Integrand):
    """|dy/dt|^2 with a weight of its own, times its own context."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, at, own):
        return self.weight * own * at.dy.square().sum(dim=1)
