"""Reading at times that all rows share and that are known as plain numbers: a stack, or one small product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from ndeflow.numerics.reading import Plan, quartic
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.trace import Trace


@final
@dataclass(frozen=True)
class EndsPlan(Plan):
    """Of times at ends of steps. states: for each time the number, 0 to N, of the state there."""

    states: list[int]

    def gather(self, trace: Trace) -> list[Tensor]:
        """One tensor, (B, M, ...)."""
        ends = [node.z for node in trace.nodes] + [trace.steps[-1].y if trace.steps else trace.z0]
        return [torch.stack([ends[n] for n in self.states], dim=1)]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        return stacks[0]

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        if stacks[0] is not None:
            for n, cotangent in zip(self.states, stacks[0].unbind(1), strict=True):
                yield "z", n, cotangent


@final
@dataclass(frozen=True)
class InsidePlan(Plan):
    """Of times inside steps. needed: numbers of the U steps that are read.

    kinds: what is read of each: "z" its start, "k" dz/dt there, "m" the midpoint, "y" its end, "l" dz/dt there.
    weights: (M, kinds * U).
    """

    needed: list[int]
    kinds: str
    weights: np.ndarray

    def gather(self, trace: Trace) -> list[Tensor]:
        """One tensor, (kinds * U, B, ...)."""
        nodes, steps = [trace.nodes[n] for n in self.needed], [trace.steps[n] for n in self.needed]
        of: dict[str, list[Any]] = {
            "z": [node.z for node in nodes],
            "k": [node.carry for node in nodes],
            "m": [step.mid for step in steps],
            "y": [step.y for step in steps],
            "l": [step.carry for step in steps],
        }
        return [torch.stack([x for kind in self.kinds for x in of[kind]])]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        (stack,) = stacks
        kind = stack.dtype if stack.device.type == "mps" else torch.promote_types(stack.dtype, torch.float64)
        weights = torch.from_numpy(self.weights).to(stack.device, kind)
        found = weights @ stack.flatten(1).to(kind)  # wide: neither autocast nor TF32 may round states
        return found.to(stack.dtype).unflatten(1, stack.shape[1:]).transpose(0, 1)

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        if stacks[0] is not None:
            places = [(kind, n) for kind in self.kinds for n in self.needed]
            for (kind, n), cotangent in zip(places, stacks[0].unbind(), strict=True):
                yield kind, n, cotangent


def numbered_plan(system: InitialValue, trace: Trace) -> EndsPlan | InsidePlan:
    """The plan of a march whose rows step together, read at the system's spots."""
    assert system.spots is not None
    segment, theta = system.spots[:2]
    nodes = trace.nodes
    if not (system.dense and nodes):
        return EndsPlan([trace.done(edge) for edge in system.spots.edges])
    key = segment + theta
    step = np.searchsorted(trace.ends(), key).clip(max=len(nodes) - 1)
    starts = np.array([(n.segment, n.theta, n.dtheta) for n in nodes])
    own, begin, size = starts[step].T
    s = ((theta + (segment - own) - begin) / size).clip(min=0)  # no row moves before the first step
    if trace.steps[0].mid is None:
        return _inside(step, "zy", [1 - s, s])
    h = np.diff(np.array(system.segments.numbers))[own.astype(int)] * size
    return _inside(step, "zkmyl", quartic(s, h))


def _inside(chosen: np.ndarray, kinds: str, weights: list[np.ndarray]) -> InsidePlan:
    read = np.bincount(chosen) > 0
    needed, index = np.flatnonzero(read), read.cumsum()[chosen] - 1
    matrix = np.zeros((len(kinds), len(chosen), len(needed)))
    matrix[:, np.arange(len(chosen)), index] = weights
    return InsidePlan(needed.tolist(), kinds, matrix.transpose(1, 0, 2).reshape(len(chosen), -1))
