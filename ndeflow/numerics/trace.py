"""What a march leaves behind, and how a solution is read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndeflow.numerics.mesh import Mesh, Place, Rejection
from ndeflow.numerics.solution import Solution, Solver, Stats, Step
from ndeflow.numerics.system import InitialValue, System


class Node(NamedTuple):
    """The start of an accepted step: all that is needed to take it again.

    theta, dtheta: where in the segment it starts and how much of it it covers. z: the packed state there. carry:
    what the step was given. fresh: the carry was made here by `Marching.begin`, not left by the step before.
    """

    segment: int
    theta: float
    dtheta: float
    z: Tensor
    carry: Any
    fresh: bool
    noise: Tensor | None = None


@dataclass
class Trace:
    """The accepted steps of a march in order, from the packed state z0; N may be 0."""

    z0: Tensor
    nodes: list[Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    nfe: int = 0

    @property
    def rejected(self) -> int:
        return len(self.rejections)

    def accept(self, node: Node, step: Step) -> None:
        """Append one accepted step; its raw error is let go."""
        self.nodes.append(node)
        self.steps.append(step._replace(error=None))

    def reject(self, place: Place, step: Step) -> None:
        """Note one rejected step."""
        ratio = None if step.ratio is None else step.ratio.detach()
        self.rejections.append(Rejection(len(self.nodes), place, ratio))

    def estimates(self) -> tuple[Tensor | None, Tensor | None]:
        """Error and stiffness of the accepted steps, (B, N) each; None where the method has none."""
        error = [s.ratio for s in self.steps if s.ratio is not None]
        stiffness = [s.stiffness for s in self.steps if s.stiffness is not None]
        return torch.stack(error, dim=1) if error else None, torch.stack(stiffness, dim=1) if stiffness else None

    def ends(self) -> list[float]:
        """For each step the place where it ends, segment + theta; exactly the next segment's number at an edge."""
        after = [*self.nodes[1:], None]
        return [
            b.segment + b.theta if b is not None and b.segment == a.segment else a.segment + 1.0
            for a, b in zip(self.nodes, after, strict=True)
        ]


@dataclass(frozen=True)
class Plan:
    """Which steps of a trace the save times are read from.

    needed: numbers of steps, or of states (0 to N) where `stacks` is 1. index: (M,) or (B, M), each time's place
    in `needed`. s: like it, the fraction of its step, on the graph. stacks: how many tensors a step is read
    from: 1 (states at step ends), 2 (linear between ends) or 5 (quartic through y0, k0, mid, y1, k1).
    """

    needed: list[int]
    index: Tensor
    s: Tensor
    stacks: int


def plan(system: InitialValue, trace: Trace) -> Plan:
    """How the system's places are read from the trace."""
    segment, theta, _ = system.places
    device, wide = theta.device, theta.dtype
    if not trace.nodes:
        return Plan([0], torch.zeros_like(segment), theta, 1)
    key = segment + theta.detach()
    ends = torch.tensor(trace.ends(), dtype=wide, device=device)
    step = torch.searchsorted(ends, key).clamp(max=len(trace.nodes) - 1)
    if not system.dense:
        step = torch.where(key > 0, step + 1, 0) if len(ends) else step
        return Plan(*_needed(step), theta, 1)
    starts = torch.tensor([(n.segment + n.theta, n.dtheta) for n in trace.nodes], dtype=wide, device=device)
    begin, size = starts[step].unbind(-1)
    s = (theta - (begin - segment)) / size
    return Plan(*_needed(step), s, 2 if trace.steps[0].mid is None else 5)


def _needed(step: Tensor) -> tuple[list[int], Tensor]:
    needed, index = step.unique(return_inverse=True)
    return needed.tolist(), index


def gather(plan: Plan, trace: Trace) -> list[Tensor]:
    """The tensors the plan reads, each (U, B, ...) over the U needed steps or states."""
    if plan.stacks == 1:
        states = [node.z for node in trace.nodes] + [trace.steps[-1].y if trace.steps else trace.z0]
        return [torch.stack([states[i] for i in plan.needed])]
    nodes, steps = [trace.nodes[i] for i in plan.needed], [trace.steps[i] for i in plan.needed]
    ends = [torch.stack([node.z for node in nodes]), torch.stack([step.y for step in steps])]
    if plan.stacks == 2:
        return ends
    mid = [step.mid for step in steps if step.mid is not None]
    start, end = [node.carry for node in nodes], [step.carry for step in steps]
    return [ends[0], torch.stack(start), torch.stack(mid), ends[1], torch.stack(end)]


def read(system: System, trace: Trace, plan: Plan, stacks: list[Tensor]) -> Tensor:
    """The packed states at the plan's times: (B, M, ...)."""
    if plan.stacks == 1:
        return _pick(stacks[0], plan.index)
    s = plan.s
    if plan.stacks == 2:
        weights = [1 - s, s]
    else:
        h = _sizes(system, trace, plan)
        weights = [
            (1 - s).square() * (1 - 2 * s) * (1 + 4 * s),
            h * s * (1 - s).square() * (1 - 2 * s),
            16 * s.square() * (1 - s).square(),
            s.square() * (2 * s - 1) * (5 - 4 * s),
            h * s.square() * (s - 1) * (2 * s - 1),
        ]
    terms = [_pick(stack, plan.index) * _weight(w, stack) for w, stack in zip(weights, stacks, strict=True)]
    return sum(terms[1:], start=terms[0])


def _sizes(system: System, trace: Trace, plan: Plan) -> Tensor:
    """The sizes h of each time's step: (M,) or (B, M), on the graph of the edges."""
    nodes = [trace.nodes[i] for i in plan.needed]
    lengths = system.segments.edges.diff(dim=0)
    picked = lengths[[node.segment for node in nodes]].movedim(0, -1)
    sizes = picked * lengths.new_tensor([node.dtheta for node in nodes])
    return sizes[plan.index] if sizes.dim() == 1 else sizes.gather(1, plan.index)


def _pick(stack: Tensor, index: Tensor) -> Tensor:
    if index.dim() == 1:
        return stack[index].transpose(0, 1)
    return stack[index, torch.arange(len(index), device=index.device).unsqueeze(1)]


def _weight(weight: Tensor, stack: Tensor) -> Tensor:
    """(M,) or (B, M) as a factor of (B, M, ...)."""
    weight = weight.to(stack.dtype.to_real())
    return weight.view(*weight.shape, *[1] * (stack.dim() - 2))


def solution(solver: Solver, system: InitialValue, trace: Trace) -> Solution:
    """The solution of a march, with all that autograd recorded of it."""
    how = plan(system, trace)
    packed = read(system, trace, how, gather(how, trace))
    return finish(solver, system, packed, statistics(system, trace, *trace.estimates()))


def finish(solver: Solver, system: InitialValue, packed: Tensor, stats: Stats) -> Solution:
    """Unpack the states read at all times, (B, M, ...)."""
    return Solution(system.times, system.state(packed), stats, system.integrals(packed), system.problem, solver)


def statistics(system: InitialValue, trace: Trace, error: Tensor | None, stiffness: Tensor | None) -> Stats:
    """The cost of a march that all rows made together, and its mesh."""
    device, rows = system.problem.y0.device, system.rows

    def each(count: int) -> Tensor:
        return torch.full((rows,), count, device=device)

    states = None
    if system.problem.keep_mesh:
        z = [system.state(node.z.detach()) for node in trace.nodes]
        states = torch.stack(z, dim=1) if z else system.problem.y0.new_zeros(rows, 0, *system.shape)
    return Stats(
        nfe=each(trace.nfe),
        accepted=each(len(trace.nodes)),
        rejected=each(trace.rejected),
        status=each(0),
        mesh=Mesh(
            system.segments.edges.detach(),
            rows,
            [Place(node.segment, node.theta, node.dtheta) for node in trace.nodes],
            trace.rejections,
        ),
        error=error,
        stiffness=stiffness,
        states=states,
        backward_nfe=[0],
    )
