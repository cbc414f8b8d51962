"""What the backward pass needs of a forward pass whose steps are taken again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Step
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.trace import Node, Plan, Trace, gather, plan


class Tape:
    """What the backward pass needs of a forward pass beside its input tensors."""

    def __init__(self, solver: Marching, system: InitialValue, trace: Trace, ambient: replay.Ambient) -> None:
        self.solver, self.system, self.trace, self.ambient = solver, system, trace, ambient
        self.plan = plan(system, trace)
        self.parameters = replay.parameters(system.problem)
        self.backward_nfe = [0]

    def outputs(self, trace: Trace) -> tuple[Tensor | None, ...]:
        """Error and stiffness (B, N) or None, and the tensors that the save times are read from."""
        return *trace.estimates(), *gather(self.plan, trace)

    def retake(self, leg: InitialValue, node: Node, z: Tensor, carry: Any) -> tuple[Any, Step]:
        """A step taken again from (z, carry); a fresh carry is made anew. Returns the carry and the step."""
        if node.fresh:
            carry = self.solver.begin(leg, leg.start, z, leg.slope(z))
        t, h = leg.moment(node.theta, node.dtheta)
        return carry, self.solver.advance(leg, t, z, h, carry, node.noise)

    def again(self, edges: Tensor, y0: Tensor, conditions: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The outputs on the graph of these inputs, on the same mesh."""
        system = replay.conditioned(self.system, conditions, edges)
        z = system.join(y0, None)
        trace, carry = Trace(z), None
        with self.ambient():
            for node in self.trace.nodes:
                carry, step = self.retake(system.at(node.segment), node, z, carry)
                trace.accept(node._replace(z=z, carry=carry), step)
                z, carry = step.y, step.carry
        self.backward_nfe[0] += system.calls
        return self.outputs(trace)


@dataclass
class Reads:
    """Cotangents of what the save times were read from: of state n, and of k0, mid, k1 of step n."""

    states: dict[int, Tensor]
    k0: dict[int, Tensor]
    mid: dict[int, Tensor]
    k1: dict[int, Tensor]

    @classmethod
    def of(cls, plan: Plan, stacks: tuple[Tensor | None, ...]) -> Reads:
        names = {1: "z", 2: "zy", 5: "zkmyl"}[plan.stacks]
        reads = cls({}, {}, {}, {})
        for name, stack in zip(names, stacks, strict=True):
            if stack is None:
                continue
            into = {"z": reads.states, "y": reads.states, "k": reads.k0, "m": reads.mid, "l": reads.k1}[name]
            for n, cotangent in zip(plan.needed, stack.unbind(), strict=True):
                n = n + 1 if name == "y" else n
                into[n] = cotangent if n not in into else into[n] + cotangent
        return reads
