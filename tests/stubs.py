"""Stand-ins that make the loop's decisions visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import System


@dataclass(frozen=True)
class Scripted(RungeKutta):
    """Takes steps of dy/dt = 1 whose error ratios are read from a script, then 0.5; `taken` lists (t, h)."""

    script: tuple[float, ...] = ()
    first: float = 0.1
    taken: Any = None

    def start(self, leg: System, z: Tensor, slope: Tensor) -> Tensor:
        return leg.start.new_tensor(self.first)

    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        n = len(self.taken)
        self.taken.append((t.item(), h.item()))
        ratio = z.new_full((len(z),), self.script[n] if n < len(self.script) else 0.5)
        mid = z + h / 2 if system.dense else None
        return Step(z + h, None, ratio, None, mid, torch.ones_like(z), norms=self.norms(ratio))


def ones(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = 1."""
    return torch.ones_like(y)
