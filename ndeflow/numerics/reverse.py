"""The reverse sweep over the steps of a tape: one vector-Jacobian product a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.form import NOTHING
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
        if not self.tape.system.problem.y0.requires_grad:
            reads.states.pop(0, None)  # of the start itself
        steps, inner = len(trace.nodes), self._inner(reads, cotangents[:ESTIMATES])
        ends: Gradients = [reads.states.get(steps)]
        for n in reversed(range(steps)):
            node = self.tape.node(n)
            if node.rows is None:
                ends = self._step(n, node, ends, inner.get(n, NOTHING), reads)
            else:
                after = [replay.taken(x, node.rows) for x in ends]
                before = self._step(n, node, after, inner.get(n, NOTHING), reads)
                ends = replay.put_all(ends, node.rows, before, len(trace.z0))
        z = replay.plus(ends[0], reads.start)
        edges, *rest = self._close()
        self.tape.backward_nfe[0] += self.system.calls
        return [edges, None if z is None else self.system.state(z), *rest]

    def _inner(self, reads: Reads, estimates: Sequence[Tensor | None]) -> dict[int, Gradients]:
        """Cotangents of what is inside of steps, by their numbers: mid and the estimates."""
        trace, every = self.tape.trace, [(i, x) for i, x in enumerate(estimates, 1) if x is not None]
        if not (every or reads.mid):
            return {}
        numbers = range(len(trace.nodes)) if every else reads.mid
        found: dict[int, Gradients] = {n: [reads.mid.get(n), *NOTHING[1:]] for n in numbers}
        for i, x in every:
            for n, cotangent in enumerate(trace.of_steps(x)):
                found[n][i] = cotangent
        return found

    def _step(self, n: int, node: Node, ends: Gradients, inner: Sequence[Tensor | None], reads: Reads) -> Gradients:
        """From cotangents of the state and the carry after step n, a node, to those before it.

        Of a carry there may be none. inner: as `_inner` gives them. The rest goes to the totals.
        """
        if n in reads.k1:
            k1, *more = ends[1:] or [None]
            ends = [ends[0], replay.plus(k1, reads.k1[n]), *more]
        if n in reads.ends:
            ends = [replay.plus(ends[0], reads.ends[n]), *ends[1:]]
        k0 = reads.k0.get(n)
        before = self._pull(n, node, ends, inner, k0 if node.fresh else None)
        if k0 is not None and not node.fresh:
            before[1] = replay.plus(before[1], k0)
        if n in reads.states:
            before[0] = replay.plus(before[0], reads.states[n])
        return before

    @abstractmethod
    def _pull(
        self, n: int, node: Node, ends: Gradients, inner: Sequence[Tensor | None], k0: Tensor | None
    ) -> Gradients:
        """The product of step n: see `_step`; a list of its own. k0: of a fresh carry, of which nothing is given."""

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
                _, step = self.tape.retake(self.tape.leg(self.system, node), node, node.z, node.carry)
            self.repeats.check(node.z, before, step.y)

    def _pull(
        self, n: int, node: Node, ends: Gradients, inner: Sequence[Tensor | None], k0: Tensor | None
    ) -> Gradients:
        z, leg = node.z.detach().requires_grad_(), self.tape.leg(self.system, node)  # a product frees its graph
        given = [] if node.fresh else [x.detach().requires_grad_() for x in replay.carried(node.carry)]
        carry, step = self.tape.retake(leg, node, z, None if node.fresh else replay.like_carry(node.carry, given))
        self.repeats.see(n, node.z, self.tape.after(n), step.y)
        after = replay.carried(step.carry)
        outputs = [step.y, *after, step.mid, *step.estimates]
        cotangents = [*ends, *[None] * (1 + len(after) - len(ends)), *inner]
        if k0 is not None:
            outputs, cotangents = [*outputs, replay.carried(carry)[0]], [*cotangents, k0]
        inputs = [z, *given, *self.inputs]
        self.origins.see(outputs, inputs)
        found = replay.grads(outputs, inputs, cotangents)
        states, rest = found[: 1 + len(given)], found[1 + len(given) :]
        self.totals = [replay.plus(a, b) for a, b in zip(self.totals, rest, strict=True)]
        return states

    def _close(self) -> Gradients:
        return self.totals


@final
class CompiledReverse(Reverse):
    """Products by the programs of the tape's engine; edges get no gradient."""

    def __init__(self, tape: Tape, edges: Tensor, conditions: list[Tensor]) -> None:
        super().__init__(tape, edges, conditions)
        engine: Any = tape.system.engine
        self.engine: Engine = engine
        self.count = self.engine.entry.line.count
        self.leg: InitialValue | None = None
        self.rows: Tensor | None = None
        self.totals: Sequence[Tensor] = ()  # of the modules' tensors, then of the leg's leaves
        self.gradients: Gradients = [None] * len(conditions)
        self.driven = any([c.requires_grad for c in conditions])

    def _at(self, node: Node) -> InitialValue:
        """The system as it takes the step of a node."""
        if self.leg is None or self.leg.segment != node.segment or self.rows is not node.rows:
            self._leave()
            self.rows = node.rows
            with torch.enable_grad() if self.driven else nullcontext():
                self.leg = self.tape.leg(self.system, node)
            self.own = [x for x in self.leg.conditions() if x.requires_grad] if self.driven else []
            zeros = self.engine.zeros(self.leg)
            self.totals = [*(self.totals[: self.count] or zeros[: self.count]), *zeros[self.count :]]
        return self.leg

    def _pull(
        self, n: int, node: Node, ends: Gradients, inner: Sequence[Tensor | None], k0: Tensor | None
    ) -> Gradients:
        engine, every, leg = self.engine, self.tape.trace.kept, self.leg
        kept, every[n] = every[n], None  # let go; another backward pass takes the step again
        if leg is None or kept is None or node.fresh or self.driven:  # else all that a product reads of it was kept
            leg = self._at(node)
            if kept is None:
                kept = engine.take(leg, *leg.moment(node.theta, node.dtheta), node.z, node.carry, node.noise)
        before, self.totals = engine.pull(leg, kept, ends, inner, self.totals)
        if not node.fresh or len(before) == 1:
            return before
        if k0 is not None:
            before[1] = before[1] + k0
        z, self.totals = engine.pull_begin(leg, kept.inputs[0], node.z, before, self.totals)
        return [z]

    def _leave(self) -> None:
        """Carry the totals of a segment's leaves over to the conditions they were made from."""
        if self.leg is not None and self.own:
            found = replay.grads(self.own, self.conditions, self.totals[self.count :])
            self.gradients = [replay.plus(a, b) for a, b in zip(self.gradients, found, strict=True)]

    def _close(self) -> Gradients:
        self._leave()
        return [None, *self.gradients, *self.engine.gradients(self.totals)]
