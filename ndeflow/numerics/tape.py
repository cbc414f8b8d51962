"""What the backward pass needs of a forward pass whose steps are taken again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.norms import row_norms
from ndeflow.numerics.reading import Plan
from ndeflow.numerics.rowwise import RowPlan
from ndeflow.numerics.solution import Estimates, SolveError, Step
from ndeflow.numerics.stepper import Eager
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.trace import Node, Trace, plan


class Tape:
    """What the backward pass needs of a forward pass beside its input tensors."""

    def __init__(self, solver: Marching, system: InitialValue, trace: Trace, ambient: replay.Ambient) -> None:
        self.solver, self.system, self.trace, self.ambient = solver, system, trace, ambient
        self.plan = plan(system, trace)
        engine: Any = system.engine
        self.parameters = engine.parameters if system.compiled else replay.parameters(system.problem)
        self.others = engine.constant if system.compiled else []
        self.backward_nfe = [0]
        self.last: Tensor | None = None  # the state that the steps come to, where all rows come to it together

    def node(self, n: int) -> Node:
        """Step n, to be asked for from the last to the first."""
        return self.trace.nodes[n]

    def settle(self) -> None:
        """Let go of what the backward pass does not need."""
        trace = self.trace
        if trace.steps and trace.failures is None and not trace.apart:
            self.last = trace.steps[-1].y
        trace.steps.clear()

    def after(self, n: int) -> Tensor | None:
        """The state that step n came to; None where it is not kept."""
        nodes = self.trace.nodes
        return nodes[n + 1].z if self.last is not None and n + 1 < len(nodes) else self.last

    def check(self) -> None:  # noqa: B027
        """After a backward pass."""

    def outputs(self, estimates: Estimates, trace: Trace) -> tuple[Tensor | None, ...]:
        """The estimates of the steps, and the tensors that the save times are read from."""
        return *estimates, *self.plan.gather(trace)

    def leg(self, system: InitialValue, node: Node) -> InitialValue:
        """The system as it takes the step of a node: on its segment, its rows alone."""
        leg = system.at(node.segment)
        return leg if node.rows is None else leg.of(node.rows)

    def retake(self, leg: InitialValue, node: Node, z: Tensor, carry: Any) -> tuple[Any, Step]:
        """A step taken again from (z, carry); a fresh carry is made anew. Returns the carry and the step."""
        if node.fresh:
            carry = self.solver.begin(leg, leg.start, z, None)
        t, h = leg.moment(node.theta, node.dtheta)
        return carry, Eager(self.solver).step(leg, t, z, h, carry, node.noise)

    def again(self, edges: Tensor, y0: Tensor, conditions: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The outputs on the graph of these inputs, on the same mesh."""
        system = replay.conditioned(self.system, conditions, edges)
        z, carry = system.join(y0, None), []
        trace = Trace(z, apart=self.trace.apart, estimated=self.trace.estimated, parts=self.trace.parts)
        with self.ambient():
            for node in self.trace.nodes:
                known = [] if node.fresh else [replay.taken(x, node.rows) for x in carry]
                given = None if node.fresh else replay.like_carry(node.carry, known)
                node = node._replace(z=replay.taken(z, node.rows))
                given, step = self.retake(self.leg(system, node), node, node.z, given)
                trace.accept(node._replace(carry=given), step)
                z = replay.put(z, node.rows, step.y, len(y0))
                carry = replay.put_all(carry, node.rows, replay.carried(step.carry), len(y0))
        self.backward_nfe[0] += system.calls
        return self.outputs(trace.estimates(), trace)


class TakenBack(Tape):
    """A tape that keeps of all states and carries the last, and takes the steps back to find the others."""

    def settle(self) -> None:
        nodes, z0 = self.trace.nodes, self.trace.z0
        last = self.trace.steps[-1:]
        self.end: list[tuple[Tensor, Any]] = [(step.y, step.carry) for step in last]
        self.trace.nodes = [node._replace(z=z0, carry=_emptied(node.carry, z0)) for node in nodes]
        self.trace.steps.clear()

    def node(self, n: int) -> Node:
        node, system = self.trace.nodes[n], self.system
        (self.reached,) = self.end if n == len(self.trace.nodes) - 1 else [self.reached]
        leg, (z, carry), calls = self.leg(system, node), self.reached, system.calls
        t, h = leg.moment(node.theta, node.dtheta)
        with torch.no_grad():
            self.reached = (system.engine or Eager(self.solver)).undo(leg, t, z, h, carry, node.noise)
        self.backward_nfe[0] += system.calls - calls
        return node._replace(z=self.reached[0], carry=self.reached[1])

    def check(self) -> None:
        """Raises SolveError where the steps lead back to another state than the first by more than half the digits."""
        for end, _ in self.end:
            found, z0 = self.reached[0], self.trace.z0
            size = torch.maximum(row_norms(z0), row_norms(end)).clamp(min=torch.finfo(z0.dtype).tiny)
            worst, row = (row_norms(found - z0) / size).nan_to_num(nan=math.inf).max(dim=0)
            if worst.item() > digits(z0.dtype):
                raise SolveError(
                    f"{len(self.trace.nodes) * self.trace.parts} steps lead back to y0 with a relative error of "
                    f"{worst.item():.1e} in row {row.item()}, more than {digits(z0.dtype):.1e}; take more steps, use "
                    "Checkpointed(), or float64"
                )


def _emptied(carry: Any, z0: Tensor) -> Any:
    """A carry of the same kind that holds z0 alone."""
    return replay.like_carry(carry, [z0 for _ in replay.carried(carry)])


def digits(dtype: torch.dtype) -> float:
    """The relative error that leaves half the digits: sqrt(eps)."""
    return math.sqrt(torch.finfo(dtype).eps)


@dataclass
class Reads:
    """Cotangents of what the save times were read from: of state n, and of k0, mid, k1 of step n.

    Where rows step apart, states are the starts of steps, `ends` their ends, and `start` is that of the march.
    """

    states: dict[int, Tensor]
    k0: dict[int, Tensor]
    mid: dict[int, Tensor]
    k1: dict[int, Tensor]
    ends: dict[int, Tensor]
    start: Tensor | None = None

    @classmethod
    def of(cls, plan: Plan, stacks: Sequence[Tensor | None]) -> Reads:
        reads, apart = cls({}, {}, {}, {}, {}), isinstance(plan, RowPlan)
        ends = reads.ends if apart else reads.states
        into = {"z": reads.states, "y": ends, "k": reads.k0, "m": reads.mid, "l": reads.k1}
        for name, n, cotangent in plan.cotangents(stacks):
            place = n + 1 if name == "y" and not apart else n
            if place >= 0:
                before = into[name].get(place)
                into[name][place] = cotangent if before is None else before + cotangent
            elif name in "zmy":  # the start state stands for a step that does not move
                reads.start = replay.plus(reads.start, cotangent)
        return reads
