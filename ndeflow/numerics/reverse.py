"""The reverse sweep over the steps of a tape: one vector-Jacobian product a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.origins import Origins, check_unmoved
from ndeflow.numerics.purity import Repeats
from ndeflow.numerics.solution import ESTIMATES
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.tape import Reads, Tape
from ndeflow.numerics.trace import Node

if TYPE_CHECKING:
    from ndeflow.numerics.engine import Engine

Gradients = list[Tensor | None]


class Reverse(ABC):
    """From cotangents of what a solve gave to gradients of (edges, y0, *conditions, *parameters)."""

    def __init__(self, tape: Tape, edges: Tensor, conditions: list[Tensor]) -> None:
        self.tape = tape
        self.edges = replay.detached(edges)
        self.conditions = [replay.detached(c) for c in conditions]
        self.system = replay.conditioned(tape.system, self.conditions, self.edges)

    def run(self, *cotangents: Tensor | None) -> Gradients:
        """The gradients, from cotangents of the tape's outputs."""
        trace, reads = self.tape.trace, Reads.of(self.tape.plan, cotangents[ESTIMATES:])
        z, carry, count = reads.states.get(len(trace.nodes)), [], len(trace.z0)
        estimates = [None if x is None else trace.of_steps(x) for x in cotangents[:ESTIMATES]]
        for n in reversed(range(len(trace.nodes))):
            rows = trace.nodes[n].rows
            after = [replay.taken(x, rows) for x in (z, *carry)]
            before, carry0 = self._step(n, after[0], after[1:], reads, [x if x is None else x[n] for x in estimates])
            z, carry = replay.put(z, rows, before, count), replay.put_all(carry, rows, carry0, count)
        z = replay.plus(z, reads.start)
        edges, *rest = self._close()
        self.tape.backward_nfe[0] += self.system.calls
        return [edges, None if z is None else self.system.state(z), *rest]

    def _step(
        self, n: int, z1: Tensor | None, carry1: Gradients, reads: Reads, estimates: Gradients
    ) -> tuple[Tensor | None, Gradients]:
        """From cotangents of the state and carry after step n to those before it; the rest goes to the totals."""
        node, k0 = self.tape.node(n), reads.k0.get(n)
        if n in reads.k1:
            carry1 = [replay.plus(carry1[0] if carry1 else None, reads.k1[n]), *carry1[1:]]
        z1, inner = replay.plus(z1, reads.ends.get(n)), [reads.mid.get(n), *estimates]
        z0, carry0 = self._pull(n, node, self._at(n, node), z1, carry1, inner, k0 if node.fresh else None)
        if k0 is not None and not node.fresh:
            carry0[0] = replay.plus(carry0[0], k0)
        return replay.plus(z0, reads.states.get(n)), carry0

    def _at(self, n: int, node: Node) -> InitialValue:
        """The system as it takes step n, a node, made anew where a product frees its graph."""
        return self.tape.leg(self.system, node)

    @abstractmethod
    def _pull(
        self,
        n: int,
        node: Node,
        leg: InitialValue,
        z1: Tensor | None,
        carry1: Gradients,
        inner: Gradients,
        k0: Tensor | None,
    ) -> tuple[Tensor | None, Gradients]:
        """The product of step n, a node: cotangents of state and carry before it; the others' are added to the totals.

        carry1: may be empty, for none. inner: cotangents of mid and the estimates. k0: of a fresh carry.
        """

    @abstractmethod
    def _close(self) -> Gradients:
        """The totals: of (edges, *conditions, *parameters)."""


@final
class EagerReverse(Reverse):
    """Takes every step again with autograd recording it, by the solver's own `advance`."""

    def __init__(self, tape: Tape, edges: Tensor, conditions: list[Tensor]) -> None:
        super().__init__(tape, edges, conditions)
        check_unmoved(tape.system.problem, tape.parameters)
        self.inputs = [self.edges, *self.conditions, *tape.parameters]
        self.totals: Gradients = [None] * len(self.inputs)
        self.origins, self.repeats = Origins(tape.system.problem), Repeats(tape.ambient.eps(tape.trace.z0))

    def run(self, *cotangents: Tensor | None) -> Gradients:
        with torch.enable_grad(), self.tape.ambient():
            found = super().run(*cotangents)
        self.origins.check()
        self._check_repeats()
        return found

    def _check_repeats(self) -> None:
        n = self.repeats.missed()
        if n is not None:
            node, before = self.tape.node(n), self.tape.after(n)
            assert before is not None
            with torch.no_grad(), self.tape.ambient():
                _, step = self.tape.retake(self._at(n, node), node, node.z, node.carry)
            self.repeats.check(node.z, before, step.y)

    def _pull(
        self,
        n: int,
        node: Node,
        leg: InitialValue,
        z1: Tensor | None,
        carry1: Gradients,
        inner: Gradients,
        k0: Tensor | None,
    ) -> tuple[Tensor | None, Gradients]:
        z = node.z.detach().requires_grad_()
        given = [] if node.fresh else [x.detach().requires_grad_() for x in replay.carried(node.carry)]
        carry, step = self.tape.retake(leg, node, z, None if node.fresh else replay.like_carry(node.carry, given))
        self.repeats.see(n, node.z, self.tape.after(n), step.y)
        after = replay.carried(step.carry)
        outputs = [step.y, *after, step.mid, *step.estimates]
        cotangents = [z1, *(carry1 or [None] * len(after)), *inner]
        if k0 is not None:
            outputs, cotangents = [*outputs, replay.carried(carry)[0]], [*cotangents, k0]
        inputs = [z, *given, *self.inputs]
        self.origins.see(outputs, inputs)
        before, *rest = replay.grads(outputs, inputs, cotangents)
        self.totals = [replay.plus(a, b) for a, b in zip(self.totals, rest[len(given) :], strict=True)]
        return before, rest[: len(given)]

    def _close(self) -> Gradients:
        return self.totals


@final
class CompiledReverse(Reverse):
    """Products by the programs of the tape's engine; edges get no gradient."""

    engine: Engine

    def __init__(self, tape: Tape, edges: Tensor, conditions: list[Tensor]) -> None:
        super().__init__(tape, edges, conditions)
        engine: Any = tape.system.engine
        self.engine = engine
        self.count = len(self.engine.entry.reached)
        self.leg: InitialValue | None = None
        self.rows: Tensor | None = None
        self.modules: Sequence[Tensor] = []
        self.leaves: Sequence[Tensor] = []
        self.gradients: Gradients = [None] * len(conditions)
        self.driven = any(c.requires_grad for c in conditions)

    def _at(self, n: int, node: Node) -> InitialValue:
        """Any segment's will do where all that a product reads of it was kept."""
        if self.leg is not None and self.tape.trace.kept[n] is not None and not (node.fresh or self.driven):
            return self.leg
        if self.leg is None or self.leg.segment != node.segment or self.rows is not node.rows:
            self._leave()
            self.rows = node.rows
            with torch.enable_grad():
                self.leg = self.tape.leg(self.system, node)
                self.own = [x for x in self.leg.conditions() if x.requires_grad]
            zeros = self.engine.zeros(self.leg)
            self.modules, self.leaves = self.modules or zeros[: self.count], zeros[self.count :]
        return self.leg

    def _pull(
        self,
        n: int,
        node: Node,
        leg: InitialValue,
        z1: Tensor | None,
        carry1: Gradients,
        inner: Gradients,
        k0: Tensor | None,
    ) -> tuple[Tensor | None, Gradients]:
        trace, totals = self.tape.trace, [*self.modules, *self.leaves]
        kept, trace.kept[n] = trace.kept[n], None  # let go; another backward pass takes the step again
        if kept is None:
            kept = self.engine.take(leg, *leg.moment(node.theta, node.dtheta), node.z, node.carry, node.noise)
        ends = [z1, *(carry1 or [None] * self.engine.form.carries)]
        z, before, totals = self.engine.pull(leg, kept, ends, inner, totals)
        if node.fresh and before:
            before[0] = before[0] if k0 is None else before[0] + k0
            more, totals = self.engine.pull_begin(leg, kept.inputs[0], node.z, before, totals)
            z, before = z + more, []
        self.modules, self.leaves = totals[: self.count], totals[self.count :]
        return z, [*before]

    def _leave(self) -> None:
        """Carry the totals of a segment's leaves over to the conditions they were made from."""
        if self.leg is not None and self.own:
            found = replay.grads(self.own, self.conditions, self.leaves)
            self.gradients = [replay.plus(a, b) for a, b in zip(self.gradients, found, strict=True)]

    def _close(self) -> Gradients:
        self._leave()
        return [None, *self.gradients, *self.engine.gradients(self.modules)]
