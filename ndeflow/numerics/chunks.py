"""Fixed-step solvers several steps at a time, as they are compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.compilation import stepper_for
from ndeflow.numerics.form import FixedForm
from ndeflow.numerics.marching import FixedMarching
from ndeflow.numerics.segments import Segments
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Node, Trace

LONGEST = 5  # steps at a time: more is hardly faster, and takes longer to compile


@final
@dataclass(frozen=True)
class Chunked(FixedMarching):
    """A fixed-step solver whose step is `size` steps of `base`; the noise of these is made where they are taken.

    steps: of its own, a segment. noise: what `base.numbers` gives.
    """

    base: FixedMarching
    size: int
    steps: int

    @classmethod
    def of(cls, base: FixedMarching, longest: int) -> Chunked:
        """As many steps at a time as divide a segment, up to the longest."""
        size = max(size for size in range(1, longest + 1) if base.steps % size == 0)
        return cls(base, size, base.steps // size)

    @property
    def masks(self) -> bool:
        return self.base.masks

    @property
    def carries(self) -> int:
        return self.base.carries

    @property
    def evaluations(self) -> int:
        return self.size * self.base.evaluations

    def check(self, problem: Problem) -> None:
        self.base.check(problem)

    def cut(self, problem: Problem) -> Segments:
        return self.base.cut(problem)

    def begin(self, system: System, t: Tensor, z: Tensor, slope: Tensor | None) -> Any:
        return self.base.begin(system, t, z, slope)

    def noises(self, system: System, first: int) -> Sequence[Any]:
        return self.base.numbers(system, first * self.size, self.size)

    def trace(self, z: Tensor) -> Trace:
        return Trace(z, parts=self.size)

    def advance(self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Any = None) -> Step:
        step = Step(z, None, None, None, None, carry)
        for j in range(self.size):
            step = self._part(system, t, h, step, noise, j)
        return step

    def undo(self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any) -> tuple[Tensor, Any]:
        part = h / self.size
        for j in reversed(range(self.size)):
            own = self.base.noise(system, noise, j, z)
            z, carry = self.base.undo(system, t + part * j if j else t, z, part, carry, own)
        return z, carry

    @torch.no_grad()
    def inside(self, leg: System, trace: Trace, n: int) -> Iterator[tuple[float, float, Step]]:
        node: Node = trace.nodes[n]
        carry = self.begin(leg, leg.start, node.z, None) if node.fresh else node.carry
        step, dtheta = Step(node.z, None, None, None, None, carry), node.dtheta / self.size
        for j in range(self.size):
            step = self._part(leg, *leg.moment(node.theta, node.dtheta), step, node.noise, j)
            yield node.theta + j * dtheta, dtheta, step

    def _part(self, system: System, t: Tensor, h: Tensor, before: Step, noise: Any, j: int) -> Step:
        """Step j of a chunk."""
        own, part = self.base.noise(system, noise, j, before.y), h / self.size
        return self.base.advance(system, t + part * j if j else t, before.y, part, before.carry, own)

    def __str__(self) -> str:
        return str(self.base)


def engaged(solver: Any, system: InitialValue, recording: bool, keeping: bool) -> FixedMarching:
    """The fixed-step solver to march a system with: where it is to be compiled, several steps at a time."""
    longest = 1 if system.dense or system.problem.keep_mesh else LONGEST
    chunked = Chunked.of(solver, longest)
    system.engine = stepper_for(solver, FixedForm, chunked, system, recording, keeping)
    return chunked if system.compiled else solver
