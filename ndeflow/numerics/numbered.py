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
    from ndeflow.numerics.solution import Step
    from ndeflow.numerics.trace import Node, Trace


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
    """Of times inside steps.

    columns: what is read, each a step's number and of that step "z" its start, "k" dz/dt there, "m" the midpoint, "y"
    its end or "l" dz/dt there. What one step ends and the next begins with is there once, as an end. weights: (M, C).
    """

    columns: list[tuple[str, int]]
    weights: np.ndarray

    def gather(self, trace: Trace) -> list[Tensor]:
        """One tensor, (B, M, ...)."""
        parts = torch.stack([_part(kind, trace.nodes[n], trace.steps[n]) for kind, n in self.columns])
        return [_mixed(self.weights, parts).transpose(0, 1)]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        return stacks[0]

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        if stacks[0] is not None:
            found = _mixed(self.weights.T, stacks[0].transpose(0, 1)).unbind()
            for (kind, n), cotangent in zip(self.columns, found, strict=True):
                yield kind, n, cotangent


def _part(kind: str, node: Node, step: Step) -> Any:
    """What a column of this kind holds, of its step."""
    if kind in "zk":
        return node.z if kind == "z" else node.carry
    return step.mid if kind == "m" else step.y if kind == "y" else step.carry


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
    step = np.asarray(trace.ends()).searchsorted(segment + theta)
    starts = [(n.segment, n.theta, n.dtheta, n.dtheta * (numbers[n.segment + 1] - numbers[n.segment])) for n in nodes]
    own, begin, size, h = np.array(starts).take(step, axis=0).T
    s = np.maximum((theta + (segment - own) - begin) / size, 0)  # no row moves before the first step
    if trace.steps[0].mid is None:
        return _inside(nodes, step, "zy", np.stack([1 - s, s], axis=1))
    weights = np.vander(s, 5, increasing=True) @ _QUARTIC
    weights[:, 1::3] *= h[:, None]
    return _inside(nodes, step, "zkmyl", weights)


_QUARTIC = np.array(QUARTIC, dtype=float).T


def _inside(nodes: Sequence[Node], chosen: np.ndarray, kinds: str, weights: np.ndarray) -> InsidePlan:
    """The plan of times that are read from the chosen ones of all steps, by weights (M, kinds)."""
    needed: Any = range(len(nodes))
    if len(nodes) > len(chosen):
        needed, chosen = np.unique(chosen, return_inverse=True)
    columns, begins, shared = list[tuple[str, int]](), list[int](), len(kinds) // 2
    for n in map(int, needed):
        joined = bool(columns) and columns[-1][1] == n - 1 and not (nodes[n].fresh and "l" in kinds)
        begins.append(len(columns) - shared * joined)
        columns += [(kind, n) for kind in kinds[shared * joined :]]
    matrix = np.zeros((len(chosen), len(columns)))
    windows = np.array(begins)[chosen, None] + np.arange(len(kinds))
    matrix[np.arange(len(chosen))[:, None], windows] = weights
    return InsidePlan(columns, matrix)
