"""How states at the save times are read from the steps of a march."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.trace import Trace


class Plan(ABC):
    """How the save times are read from a trace."""

    @abstractmethod
    def gather(self, trace: Trace) -> list[Tensor]:
        """The tensors to read from: packed states and slopes."""

    @abstractmethod
    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        """The packed states at the plan's times, (B, M, ...), from what `gather` gave."""

    @abstractmethod
    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        """Cotangents of what `gather` gives, one by one: of what, of which step or state, and the tensor.

        "z": of state n, from 0 to N, or where rows step apart of the start of step n; "y": of the end of step n; "k",
        "m", "l": of its first slope, its midpoint and its last slope.
        """


@dataclass(frozen=True)
class StepPlan(Plan):
    """Which steps of a trace each save time is read from.

    index: (M,) or (B, M), each time's place among what `gather` gives. s: like it, the fraction of its step, on the
    graph. h: like it, the size of its step, on the graph where it enters. stacks: how many tensors a step is read
    from: 1 (states at step ends), 2 (linear between ends) or 5 (quartic through y0, k0, mid, y1, k1).
    """

    index: Tensor
    s: Tensor
    h: Tensor
    stacks: int

    @abstractmethod
    def pick(self, stack: Tensor) -> Tensor:
        """What each time is read from: (B, M, ...)."""

    @abstractmethod
    def parted(self, stack: Tensor) -> dict[int, Tensor]:
        """A stack as what belongs to each step, or state, that is read."""

    @property
    @abstractmethod
    def names(self) -> str:
        """What each stack holds, as `cotangents` names it."""

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        for name, stack in zip(self.names, stacks, strict=True):
            for n, cotangent in ({} if stack is None else self.parted(stack)).items():
                yield name, n, cotangent

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        if self.stacks == 1:
            return self.pick(stacks[0])
        weights = quartic(self.s, self.h) if self.stacks == 5 else [1 - self.s, self.s]
        terms = [x * _weight(w, x) for w, x in zip(weights, map(self.pick, stacks), strict=True)]
        return sum(terms[1:], start=terms[0])


QUARTIC = (
    (1, 0, -11, 18, -8),
    (0, 1, -4, 5, -2),
    (0, 0, 16, -32, 16),
    (0, 0, -5, 14, -8),
    (0, 0, 1, -3, 2),
)
"""Weights of z0, h k0, the midpoint, z1 and h k1 in the quartic through them: each a polynomial in the fraction s of
the step, by its coefficients of 1, s, ..., s^4."""


def quartic(s: Tensor, h: Tensor) -> list[Tensor]:
    """Weights of z0, k0, the midpoint, z1 and k1, at the fraction s of a step of size h."""
    powers = torch.stack([torch.ones_like(s), s, s**2, s**3, s**4], dim=-1)
    z0, k0, mid, z1, k1 = (powers.unsqueeze(-2) * powers.new_tensor(QUARTIC)).sum(dim=-1).unbind(-1)
    return [z0, h * k0, mid, z1, h * k1]


def _weight(weight: Tensor, x: Tensor) -> Tensor:
    """(M,) or (B, M) as a factor of x (B, M, ...)."""
    weight = weight.to(x.dtype.to_real())
    return weight.view(*weight.shape, *[1] * (x.dim() - 2))


@final
@dataclass(frozen=True)
class SharedPlan(StepPlan):
    """Of steps that all rows took together. needed: numbers of steps, or of states (0 to N) where `stacks` is 1."""

    needed: list[int]

    def gather(self, trace: Trace) -> list[Tensor]:
        """Each (U, B, ...) over the U needed steps or states."""
        if self.stacks == 1:
            states = [node.z for node in trace.nodes] + [trace.steps[-1].y if trace.steps else trace.z0]
            return [torch.stack([states[i] for i in self.needed])]
        nodes, steps = [trace.nodes[i] for i in self.needed], [trace.steps[i] for i in self.needed]
        ends = [torch.stack([node.z for node in nodes]), torch.stack([step.y for step in steps])]
        if self.stacks == 2:
            return ends
        mid = [step.mid for step in steps if step.mid is not None]
        start, end = [node.carry for node in nodes], [step.carry for step in steps]
        return [ends[0], torch.stack(start), torch.stack(mid), ends[1], torch.stack(end)]

    def pick(self, stack: Tensor) -> Tensor:
        if self.index.dim() == 1:
            return stack[self.index].transpose(0, 1)
        return stack[self.index, torch.arange(len(self.index), device=stack.device).unsqueeze(1)]

    @property
    def names(self) -> str:
        return {1: "z", 2: "zy", 5: "zkmyl"}[self.stacks]

    def parted(self, stack: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.needed, stack.unbind(), strict=True))


def shared_plan(system: InitialValue, trace: Trace) -> SharedPlan:
    """The plan of a march whose rows step together."""
    segment, theta, _ = system.places
    if not trace.nodes:
        return SharedPlan(torch.zeros_like(segment), theta, theta, 1, [0])
    key = segment + theta.detach()
    ends = theta.new_tensor(trace.ends())
    step = torch.searchsorted(ends, key).clamp(max=len(trace.nodes) - 1)
    if not system.dense:
        needed, index = torch.where(key > 0, step + 1, 0).unique(return_inverse=True)
        return SharedPlan(index, theta, theta, 1, needed.tolist())
    starts = theta.new_tensor([(n.segment + n.theta, n.dtheta) for n in trace.nodes])
    begin, size = starts[step].unbind(-1)
    s = ((theta - (begin - segment)) / size).clamp(min=0)  # no row moves before the first step
    needed, index = step.unique(return_inverse=True)
    needed = needed.tolist()
    if trace.steps[0].mid is None:
        return SharedPlan(index, s, s, 2, needed)
    return SharedPlan(index, s, _sizes(system, trace, needed, index), 5, needed)


def _sizes(system: InitialValue, trace: Trace, needed: list[int], index: Tensor) -> Tensor:
    """The sizes h of each time's step: (M,) or (B, M), on the graph of the edges."""
    nodes = [trace.nodes[i] for i in needed]
    lengths = system.segments.edges.diff(dim=0)
    picked = lengths[[node.segment for node in nodes]].movedim(0, -1)
    sizes = picked * lengths.new_tensor([node.dtheta for node in nodes])
    return sizes[index] if sizes.dim() == 1 else sizes.gather(1, index)
