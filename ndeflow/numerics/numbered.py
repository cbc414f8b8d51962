"""Reading at times that all rows share and that are known as plain numbers: one small matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from ndeflow.numerics.reading import Plan, quartic
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.trace import Trace


@final
@dataclass(frozen=True)
class NumberedPlan(Plan):
    """Which states and slopes each of M times is read from, and with which weights.

    needed: numbers of states (0 to N), or of steps where `kinds` are more than one. kinds: what is read of each:
    "z" its start, "k" dz/dt there, "m" the midpoint, "y" its end, "l" dz/dt there. weights: (M, kinds * needed).
    """

    needed: list[int]
    kinds: str
    weights: np.ndarray

    def gather(self, trace: Trace) -> list[Tensor]:
        """One tensor, (kinds * needed, B, ...)."""
        nodes, steps = trace.nodes, trace.steps
        if self.kinds == "z":
            states = [node.z for node in nodes] + [steps[-1].y if steps else trace.z0]
            return [torch.stack([states[n] for n in self.needed])]
        of = {
            "z": lambda n: nodes[n].z,
            "k": lambda n: nodes[n].carry,
            "m": lambda n: steps[n].mid,
            "y": lambda n: steps[n].y,
            "l": lambda n: steps[n].carry,
        }
        return [torch.stack([of[kind](n) for kind in self.kinds for n in self.needed])]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        (stack,) = stacks
        weights = torch.as_tensor(self.weights, device=stack.device).to(stack.dtype)
        return (weights @ stack.flatten(1)).unflatten(1, stack.shape[1:]).transpose(0, 1)

    def cotangents(self, stacks: Sequence[Tensor | None]) -> Iterator[tuple[str, int, Tensor]]:
        (stack,) = stacks
        if stack is None:
            return
        places = [(kind, n) for kind in self.kinds for n in self.needed]
        for (kind, n), cotangent in zip(places, stack.unbind(), strict=True):
            yield kind, n, cotangent


def numbered_plan(system: InitialValue, trace: Trace) -> NumberedPlan:
    """The plan of a march whose rows step together, read at the system's numbered places."""
    assert system.spots is not None
    segment, theta = system.spots
    key, nodes, whole = segment + theta, trace.nodes, np.ones_like(theta)
    if not nodes:
        return _plan(np.zeros_like(segment), "z", [whole])
    step = np.searchsorted(trace.ends(), key).clip(max=len(nodes) - 1)
    if not system.dense:
        return _plan(np.where(key > 0, step + 1, 0), "z", [whole])
    starts = np.array([(n.segment, n.theta, n.dtheta) for n in nodes])
    own, begin, size = starts[step].T
    s = (theta + (segment - own) - begin) / size
    if trace.steps[0].mid is None:
        return _plan(step, "zy", [1 - s, s])
    numbers = np.array(system.segments.numbers)
    h = np.diff(numbers)[own.astype(int)] * size
    return _plan(step, "zkmyl", quartic(s, h))


def _plan(chosen: np.ndarray, kinds: str, weights: list[np.ndarray]) -> NumberedPlan:
    needed, index = np.unique(chosen, return_inverse=True)
    matrix = np.zeros((len(chosen), len(kinds), len(needed)))
    matrix[np.arange(len(chosen)), :, index] = np.stack(weights, axis=1)
    return NumberedPlan(needed.tolist(), kinds, matrix.reshape(len(chosen), -1))
