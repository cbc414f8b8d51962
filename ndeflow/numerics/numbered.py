"""Reading at times that all rows share and that are known as plain numbers: a stack, or one small product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from ndeflow.numerics.reading import QUARTIC, Plan
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
    weights: (M, U * kinds).
    """

    needed: list[int]
    kinds: str
    weights: np.ndarray

    def gather(self, trace: Trace) -> list[Tensor]:
        """One tensor, (B, M, ...)."""
        parts: list[Any] = []
        for node, step in ((trace.nodes[n], trace.steps[n]) for n in self.needed):
            parts += [node.z, node.carry, step.mid, step.y, step.carry] if "m" in self.kinds else [node.z, step.y]
        return [_mixed(self.weights, torch.stack(parts)).transpose(0, 1)]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        return stacks[0]

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        if stacks[0] is not None:
            found = iter(_mixed(self.weights.T, stacks[0].transpose(0, 1)).unbind())
            yield from ((kind, n, next(found)) for n in self.needed for kind in self.kinds)


def _mixed(weights: np.ndarray, x: Tensor) -> Tensor:
    """Combinations (P, ...) of x (Q, ...), in float64 where the device has it: neither autocast nor TF32 may round."""
    kind = x.dtype if x.device.type == "mps" else torch.promote_types(x.dtype, torch.float64)
    found = torch.from_numpy(weights).to(x.device, kind).mm(x.reshape(len(x), -1).to(kind))
    return found.to(x.dtype).view(-1, *x.shape[1:])


def numbered_plan(system: InitialValue, trace: Trace) -> EndsPlan | InsidePlan:
    """The plan of a march whose rows step together, read at the system's spots."""
    nodes, numbers = trace.nodes, system.segments.numbers
    assert system.spots is not None and numbers is not None
    segment, theta = system.spots[:2]
    if not (system.dense and nodes):
        return EndsPlan([trace.done(edge) for edge in system.spots.edges])
    step = np.searchsorted(trace.ends(), segment + theta)
    starts = [(n.segment, n.theta, n.dtheta, n.dtheta * (numbers[n.segment + 1] - numbers[n.segment])) for n in nodes]
    own, begin, size, h = np.array(starts)[step].T
    s = np.maximum((theta + (segment - own) - begin) / size, 0)  # no row moves before the first step
    if trace.steps[0].mid is None:
        return _inside(step, len(nodes), "zy", np.stack([1 - s, s], axis=1))
    weights = np.vander(s, 5, increasing=True) @ _QUARTIC
    weights[:, 1::3] *= h[:, None]
    return _inside(step, len(nodes), "zkmyl", weights)


_QUARTIC = np.array(QUARTIC, dtype=float).T


def _inside(chosen: np.ndarray, steps: int, kinds: str, weights: np.ndarray) -> InsidePlan:
    """The plan of times that are read from the chosen ones of all steps, by weights (M, kinds)."""
    needed: Any = range(steps)
    if steps > len(chosen):
        needed, chosen = np.unique(chosen, return_inverse=True)
    matrix = np.zeros((len(chosen), len(needed), len(kinds)))
    matrix[np.arange(len(chosen)), chosen] = weights
    return InsidePlan([*map(int, needed)], kinds, matrix.reshape(len(chosen), -1))
