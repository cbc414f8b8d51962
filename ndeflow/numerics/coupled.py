"""Algebraically reversible coupling: any Runge-Kutta method made a pair of states that can be stepped back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Trace


@final
@dataclass(frozen=True)
class Coupled:
    """Two states (y, z), both the initial one at first, that the increments Psi of a base method carry by turns.

    y1 = c y + (1 - c) z + Psi_h(t, z),  z1 = z - Psi_-h(t + h, y1);  a row with h = 0 stands still, as if c were 1.
    Written by the base method's results A = z + Psi_h(t, z) and B = y1 + Psi_-h(t + h, y1) a step, and its inverse,
    are y1 = A + c (y - z), z1 = z + y1 - B; z = z1 - y1 + B, y = z + (y1 - A) / c. Of the order of the base method,
    for two of its steps a step. McCallum, Foster 2024, "Efficient, accurate and stable gradients for neural ODEs".
    """

    base: Marching
    coupling: float

    def march(self, system: InitialValue) -> tuple[Trace, Tensor]:
        """The trace of the states y, and the last pair (B, 2, ...); steps are accepted as the base method's are.

        Raises SolveError as the base method does.
        """
        trace = self.base.stepping(self.advance).march(Pair(system))
        end = trace.steps[-1].y if trace.steps else trace.z0
        nodes = [node._replace(z=node.z[:, 0], carry=_single(node.carry)) for node in trace.nodes]
        steps = [step._replace(y=step.y[:, 0], carry=_single(step.carry)) for step in trace.steps]
        return replace(trace, z0=trace.z0[:, 0], nodes=nodes, steps=steps), end

    def advance(
        self, system: Pair, t: Tensor, pair: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        """One step of a pair (B, 2, ...), judged by the larger error of the base method's two.

        carry: dz/dt at (t, z), (B, 1, ...), or None. Where `system.dense`, y inside the step is the base method's
        interpolant of A, moved by c^s (y - z) to fourth order at most: it meets y at both ends.
        """
        t, h = system.single(t), system.single(h)
        y, z = pair.unbind(1)
        first = self.first(system.inner, t, z, h, _single(carry))
        keep = self.kept(h, z)
        y1 = first.y + keep * (y - z)
        second = self.second(system.inner, t, y1, h)
        z1 = z + (y1 - second.y)
        ratio = None
        if first.ratio is not None and second.ratio is not None:
            ratio = torch.maximum(first.ratio, second.ratio)
        mid = slope = None
        if first.mid is not None:
            mid = first.mid + (1 + keep) / 2 * (y - z)
            slope = self.slope(system.inner, t, z1, h).unsqueeze(1)
        base: Any = self.base
        norms = base.norms(ratio, first.stiffness) if first.norms else ()
        return Step(torch.stack([y1, z1], dim=1), None, ratio, first.stiffness, mid, slope, None, norms)

    def first(self, leg: InitialValue, t: Tensor, z: Tensor, h: Tensor, slope: Tensor | None = None) -> Step:
        """The base method's step from z at t over h."""
        return self.base.advance(leg, t, z, h, slope)

    def second(self, leg: InitialValue, t: Tensor, y1: Tensor, h: Tensor) -> Step:
        """The base method's step from y1 at t + h over -h."""
        return self.base.advance(leg.without_dense(), t + h, y1, -h)

    def slope(self, leg: InitialValue, t: Tensor, z1: Tensor, h: Tensor) -> Tensor:
        """dz/dt at t + h, for dense output and the next step."""
        return leg((t + h).to(z1.dtype.to_real()), z1)

    def kept(self, h: Tensor, z: Tensor) -> Tensor:
        """What remains of y - z over a step: the coupling, 1 for rows that stand still; as h."""
        return torch.full_like(h, self.coupling, dtype=z.dtype.to_real()).masked_fill(h == 0, 1.0)


class Pair(System):
    """A system whose packed state is a pair (B, 2, *packed), rated and judged by its second state."""

    def __init__(self, inner: InitialValue) -> None:
        super().__init__()
        self._calls = inner._calls
        self.inner, self.segments, self.dense, self.rows = inner, inner.segments, inner.dense, inner.rows

    def open(self) -> tuple[Tensor, Tensor]:
        z, slope = self.inner.open()
        return torch.stack([z, z], dim=1), slope.unsqueeze(1)

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        return self.inner(self.single(t), z[:, 1]).unsqueeze(1)

    def judged(self, z: Tensor) -> Tensor:
        return self.inner.judged(z[:, -1])

    def beside(self, z: Tensor) -> Tensor | None:
        return self.inner.beside(z[:, -1])

    def at(self, segment: int) -> Self:
        leg = self.copied()
        leg.inner = self.inner.at(segment)
        leg.segment = segment
        leg.start, leg.length = (x.unsqueeze(1) if x.dim() else x for x in (leg.inner.start, leg.inner.length))
        return leg

    def column(self, x: Tensor) -> Tensor:
        return self.inner.column(x).unsqueeze(1) if x.dim() else x

    def single(self, t: Tensor) -> Tensor:
        """A time that broadcasts against a pair, reshaped to broadcast against one of its states."""
        return t.squeeze(1) if t.dim() else t


def _single(carry: Tensor | None) -> Tensor | None:
    return None if carry is None else carry[:, 0]
