"""Gradients of the discrete solve: recorded as it runs, or recomputed step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.reading import Plan
from ndeflow.numerics.rowwise import RowPlan
from ndeflow.numerics.solution import Adjoint, Solution, Solver, Step
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.trace import Node, Trace, finish, plan, statistics


@final
@dataclass(frozen=True)
class Direct(Adjoint):
    """Autograd records the whole solve: fastest where memory allows, any field, any solver, any order of gradient."""

    differentiable_stats: ClassVar[bool] = True

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        return solver.integrate(problem)


@final
@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Keeps the state at each accepted step and takes every step again in the backward pass.

    The gradient is that of the discrete solve, as `Direct`'s to rounding, for the memory of one step's graph and
    two states a step. Error and stiffness, dense output, context and times are differentiated too, twice if
    asked. The field must be a module that gives the same values when called again: no dropout, no running
    statistics. `stats.backward_nfe` is filled by the backward pass. Raises ValueError for a field that is not a
    module and for solvers that do not march by steps.
    """

    differentiable_stats: ClassVar[bool] = True

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        if not isinstance(solver, Marching):
            raise ValueError(
                f"expected a solver that marches by steps for Checkpointed, got {type(solver).__name__}; use Direct()"
            )
        replay.needs_module(problem, "Checkpointed")
        if not torch.is_grad_enabled():
            return solver.integrate(problem)
        system, ambient = solver.system(problem), replay.Ambient.of(problem.y0)
        with torch.no_grad(), ambient():
            trace = solver.march(system)
        tape = Tape(solver, system, trace, ambient)
        inputs = [system.segments.edges, problem.y0, *replay.conditions(problem), *tape.parameters]
        error, stiffness, *stacks = Replay.apply(tape, *inputs)
        trace.steps.clear()  # the nodes are enough to take the steps again
        stats = statistics(system, trace, error, stiffness)
        stats.backward_nfe = tape.backward_nfe
        return finish(solver, system, tape.plan.read(stacks), stats)


class Tape:
    """What the backward pass needs of a forward pass beside its input tensors."""

    def __init__(self, solver: Marching, system: InitialValue, trace: Trace, ambient: replay.Ambient) -> None:
        self.solver, self.system, self.trace, self.ambient = solver, system, trace, ambient
        self.plan = plan(system, trace)
        self.parameters = replay.parameters(system.problem)
        self.backward_nfe = [0]

    def outputs(self, trace: Trace) -> tuple[Tensor | None, ...]:
        """Error and stiffness (B, N) or None, and the tensors that the save times are read from."""
        return *trace.estimates(), *self.plan.gather(trace)

    def leg(self, system: InitialValue, node: Node) -> InitialValue:
        """The system as it takes the step of a node: on its segment, its rows alone."""
        leg = system.at(node.segment)
        return leg if node.rows is None else leg.of(node.rows)

    def retake(self, leg: InitialValue, node: Node, z: Tensor, carry: Any) -> tuple[Any, Step]:
        """A step taken again from (z, carry); a fresh carry is made anew. Returns the carry and the step."""
        if node.fresh:
            carry = self.solver.begin(leg, leg.start, z, leg.slope(z))
        t, h = leg.moment(node.theta, node.dtheta)
        return carry, self.solver.advance(leg, t, z, h, carry, node.noise)

    def again(self, edges: Tensor, y0: Tensor, conditions: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The outputs on the graph of these inputs, on the same mesh."""
        system = replay.conditioned(self.system, conditions, edges)
        z, carry = system.join(y0, None), []
        trace = Trace(z, apart=self.trace.apart)
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
        return self.outputs(trace)


class Replay(torch.autograd.Function):
    """(edges, y0, *conditions, *parameters) -> (error, stiffness, *stacks), taking steps again in the backward."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, edges: Tensor, y0: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(edges, y0, *tensors)
        return tape.outputs(tape.trace)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, inputs = ctx.tape, list(ctx.saved_tensors)
        edges, y0, *rest = inputs
        conditions = rest[: len(rest) - len(tape.parameters)]
        if torch.is_grad_enabled():
            outputs = tape.again(edges, y0, conditions)
            return None, *replay.grads(outputs, inputs, cotangents, create_graph=True)
        return None, *Reverse(tape, edges, conditions).run(*cotangents)


class Reverse:
    """The reverse sweep over the steps of a tape: one vector-Jacobian product a step."""

    def __init__(self, tape: Tape, edges: Tensor, conditions: list[Tensor]) -> None:
        self.tape = tape
        self.edges = replay.detached(edges)
        self.conditions = [replay.detached(c) for c in conditions]
        self.system = replay.conditioned(tape.system, self.conditions, self.edges)
        self.inputs = [self.edges, *self.conditions, *tape.parameters]
        self.totals: list[Tensor | None] = [None] * len(self.inputs)

    def run(self, error: Tensor | None, stiffness: Tensor | None, *stacks: Tensor | None) -> list[Tensor | None]:
        """Gradients of (edges, y0, *conditions, *parameters)."""
        trace, reads = self.tape.trace, Reads.of(self.tape.plan, stacks)
        z, carry = reads.states.get(len(trace.nodes)), []
        with torch.enable_grad(), self.tape.ambient():
            for n in reversed(range(len(trace.nodes))):
                rows, count = trace.nodes[n].rows, len(trace.z0)
                after = [replay.taken(x, rows) for x in (z, *carry)]
                estimates = [None if x is None else trace.of_step(x, n) for x in (error, stiffness)]
                before, carry0 = self._step(n, after[0], after[1:], reads, estimates)
                z, carry = replay.put(z, rows, before, count), replay.put_all(carry, rows, carry0, count)
        z = replay.plus(z, reads.start)
        self.tape.backward_nfe[0] += self.system.calls
        edges, *rest = self.totals
        return [edges, None if z is None else self.system.state(z), *rest]

    def _step(
        self, n: int, z1: Tensor | None, carry1: list[Tensor | None], reads: Reads, estimates: list[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """From cotangents of the state and carry after step n to those before it; the rest goes to the totals."""
        node = self.tape.trace.nodes[n]
        z = node.z.detach().requires_grad_()
        inputs = [] if node.fresh else [x.detach().requires_grad_() for x in replay.carried(node.carry)]
        given = None if node.fresh else replay.like_carry(node.carry, inputs)
        carry, step = self.tape.retake(self.tape.leg(self.system, node), node, z, given)
        after = replay.carried(step.carry)
        carry1 = carry1 or [None] * len(after)
        if n in reads.k1:
            carry1[0] = replay.plus(carry1[0], reads.k1[n])
        outputs = [step.y, *after, step.mid, step.ratio, step.stiffness]
        cotangents = [replay.plus(z1, reads.ends.get(n)), *carry1, reads.mid.get(n), *estimates]
        if node.fresh:
            outputs, cotangents = [*outputs, *replay.carried(carry)[:1]], [*cotangents, reads.k0.get(n)]
        before, *rest = replay.grads(outputs, [z, *inputs, *self.inputs], cotangents)
        self.totals = [replay.plus(a, b) for a, b in zip(self.totals, rest[len(inputs) :], strict=True)]
        carry0 = rest[: len(inputs)]
        if n in reads.k0 and not node.fresh:
            carry0[0] = replay.plus(carry0[0], reads.k0[n])
        return replay.plus(before, reads.states.get(n)), carry0


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
        names = {1: "y" if apart else "z", 2: "zy", 5: "zkmyl"}[plan.stacks]
        ends = reads.ends if apart else reads.states
        into = {"z": reads.states, "y": ends, "k": reads.k0, "m": reads.mid, "l": reads.k1}
        for name, stack in zip(names, stacks, strict=True):
            for n, cotangent in ({} if stack is None else plan.parted(stack)).items():
                place = n + 1 if name == "y" and not apart else n
                if place >= 0:
                    before = into[name].get(place)
                    into[name][place] = cotangent if before is None else before + cotangent
                elif name in "zmy":  # the start state stands for a step that does not move
                    reads.start = replay.plus(reads.start, cotangent)
        return reads
