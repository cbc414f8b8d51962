"""What a march leaves behind, and how a solution is read from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from ndeflow.numerics.mesh import BrokenMesh, Mesh, Place, Rejection, SharedMesh
from ndeflow.numerics.numbered import numbered_plan
from ndeflow.numerics.reading import Plan, shared_plan
from ndeflow.numerics.rowwise import Failures, RowMesh, Table, Try, owners, row_plan
from ndeflow.numerics.solution import ESTIMATES, Counts, Estimates, Solution, Solver, Stats, Step, named_estimates
from ndeflow.numerics.system import InitialValue


class Node(NamedTuple):
    """The start of an accepted step: all that is needed to take it again.

    theta, dtheta: where in the segment it starts and how much of it it covers; (L,) where rows step apart. z: the
    packed state there. carry: what the step was given. fresh: the carry was made here by `Marching.begin`, not left
    by the step before. rows: (L,), whose step it is, as all else here; None: of all rows.
    """

    segment: int
    theta: Any
    dtheta: Any
    z: Tensor
    carry: Any
    fresh: bool
    noise: Tensor | None = None
    rows: Tensor | None = None


@final
@dataclass(frozen=True)
class Trail:
    """What steps that all rows took together leave, so that more can be taken from them.

    nodes: the N accepted steps. kept: what each keeps for the backward pass, or None, also once that has run. end: the
    packed state that they come to.
    """

    system: InitialValue
    nodes: Sequence[Node]
    kept: Sequence[Any]
    end: Tensor

    def state(self, n: int) -> Tensor:
        """State n, 0 to N, detached: (B, *state)."""
        return self.system.state(self.nodes[n].z if n < len(self.nodes) else self.end).detach()

    @property
    def states(self) -> Tensor:
        """(B, N, *state): at the starts of the steps."""
        return torch.stack([self.state(n) for n in range(len(self.nodes) + 1)], dim=1)[:, :-1]


@dataclass
class Trace:
    """The accepted steps of a march in order, from the packed state z0; N may be 0.

    apart: rows step each at its own pace; then `tries` are all attempts, and otherwise `rejections` those in vain.
    estimated: whether its steps estimate error and stiffness. parts: how many equal steps each of its steps stands for.
    kept: what each step keeps for the backward pass, or None. nfe: of every row, or (B,). failures: None where all rows
    were solved.
    """

    z0: Tensor
    nodes: list[Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    nfe: int | Tensor = 0
    apart: bool = False
    estimated: tuple[bool, bool] = (False, False)
    parts: int = 1
    tries: list[Try] = field(default_factory=list)
    failures: Failures | None = None

    @property
    def rejected(self) -> int:
        return len(self.rejections)

    def accept(self, node: Node, step: Step) -> None:
        """Append one accepted step; its raw error is let go."""
        self.nodes.append(node)
        self.kept.append(step.kept)
        self.steps.append(step if step.error is None else step._replace(error=None))

    def reject(self, place: Place, step: Step) -> None:
        """Note one rejected step."""
        ratio = None if step.ratio is None else step.ratio.detach()
        self.rejections.append(Rejection(len(self.nodes), place, ratio))

    def estimates(self) -> Estimates:
        """Error of the accepted steps (B, N), its norms (N,) where rows step together, and stiffness likewise.

        None where the method has none.
        """
        if self.steps:
            kinds: Any = zip(*[step.estimates for step in self.steps], strict=True)
            return [None if kind[0] is None else self.by_row(kind) for kind in kinds]
        nothing = self.z0.new_zeros(len(self.z0), 0, dtype=self.z0.dtype.to_real())
        norm = None if self.apart else nothing.sum(dim=0)
        return [x if there else None for there in self.estimated for x in (nothing, norm)]

    @property
    def _stackable(self) -> bool:
        """Whether estimates are mere stacks of those of steps, which all rows took together."""
        return bool(self.steps) and not self.apart

    def estimates_later(self) -> Estimates:
        """As `estimates`, each stacked when it is first read.

        Where gradients are recorded they are stacked now: who reads might not record them.
        """
        return Unread(self.steps) if self._stackable and not torch.is_grad_enabled() else self.estimates()

    def room(self) -> Estimates:
        """For `estimates` of steps that autograd did not record; where rows step together yet to be `filled`."""
        if not self._stackable:
            return self.estimates()
        count = len(self.steps)
        return [None if x is None else x.new_empty(*x.shape, count) for x in self.steps[0].estimates]

    def filled(self, room: Estimates) -> Estimates:
        """As `estimates_later`, in tensors made of `room`."""
        return Unread(self.steps, room) if self._stackable else room

    def by_row(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor a step, each over the rows of its step, as (B, N, ...); numbers as (N,)."""
        if self.apart:
            return self.table.spread(torch.cat(tuple(values)))
        return _stacked(values)

    @cached_property
    def table(self) -> Table:
        """Which row took which steps, where rows step apart."""
        return Table(owners([node.rows for node in self.nodes], self.z0), len(self.z0))

    def of_steps(self, x: Tensor) -> Sequence[Tensor]:
        """(B, N) as its N columns, (N,) as numbers; where rows step apart, as the entries (L,) of the rows of each."""
        if not self.apart:
            return (x.t().contiguous() if x.dim() > 1 else x).unbind()
        return x[self.table.owner, self.table.rank].split([len(node.z) for node in self.nodes])

    @property
    def counts(self) -> tuple[int | Tensor, int | Tensor]:
        """Accepted and rejected steps of every row, or (B,)."""
        if not self.apart:
            steps = len(self.nodes) * self.parts
            return steps if self.failures is None else self.taken(self.failures), self.rejected
        owner = owners([x.rows for x in self.tries], self.z0)
        vain = torch.cat([owner[:0], *((x.verdict < 0).long() for x in self.tries)])
        return self.table.counts, torch.zeros_like(self.table.counts).index_add(0, owner, vain)

    @property
    def places(self) -> list[Place]:
        """Where its steps, or the parts that they stand for, lie."""
        places = [Place(node.segment, node.theta, node.dtheta) for node in self.nodes]
        return places if self.parts == 1 else [part for place in places for part in place.parts(self.parts)]

    def taken(self, failures: Failures) -> Tensor:
        """(B,) how many of the steps that rows take together lie before a row failed."""
        starts = failures.stopped.new_tensor([place.segment + place.theta for place in self.places])
        return (starts < failures.stopped.unsqueeze(1)).sum(dim=1)

    def done(self, segment: int) -> int:
        """How many steps lie before a segment."""
        return bisect_left(self.nodes, segment, key=lambda node: node.segment)

    def ends(self) -> list[float]:
        """For each step the place where it ends, segment + theta; exactly the next segment's number at an edge."""
        after = [*self.nodes[1:], None]
        return [
            b.segment + b.theta if b is not None and b.segment == a.segment else a.segment + 1.0
            for a, b in zip(self.nodes, after, strict=True)
        ]


_ESTIMATED = attrgetter("ratio", "stiffness", "norms")


@final
class Unread(Sequence[Tensor | None]):
    """The estimates of steps that autograd did not record, each stacked when it is first read.

    room: the tensors to write them to; None: new ones.
    """

    def __init__(self, steps: Sequence[Step], room: Estimates = (None,) * ESTIMATES) -> None:
        self._steps = [*map(_ESTIMATED, steps)]  # no state is kept
        self._room, self._read = room, dict[int, Tensor | None]()

    def __len__(self) -> int:
        return len(self._room)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(len(self))[place]]
        place = range(len(self))[place]
        if place not in self._read:
            values: Any = [named_estimates(*step)[place] for step in self._steps]
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
                self._read[place] = None if values[0] is None else _stacked(values, self._room[place])
        return self._read[place]


def _stacked(values: Sequence[Tensor], room: Tensor | None = None) -> Tensor:
    """One tensor a step, (B, ...) or a number, as (B, N, ...) or (N,); room: where to, which may be on a graph."""
    found = torch.stack(tuple(values), dim=min(values[0].dim(), 1), out=None if room is None else room.detach())
    return found if room is None else room


def plan(system: InitialValue, trace: Trace) -> Plan:
    """How the system's places are read from the trace."""
    if trace.apart:
        return row_plan(system, trace)
    return shared_plan(system, trace) if system.spots is None else numbered_plan(system, trace)


def solution(solver: Solver, system: InitialValue, trace: Trace) -> Solution:
    """The solution of a march, with all that autograd recorded of it."""
    how = plan(system, trace)
    packed = how.read(how.gather(trace))
    return finish(solver, system, packed, statistics(system, trace, trace.estimates_later()))


def finish(solver: Solver, system: InitialValue, packed: Tensor, stats: Stats) -> Solution:
    """Unpack the states read at all times, (B, M, ...)."""
    columns = system.integrals(packed) if system.columns else None
    return Solution(system.times, system.state(packed), stats, columns, system.problem, solver)


@torch.no_grad()
def partial(solver: Solver, system: InitialValue, trace: Trace) -> Solution:
    """What there is of a march that failed: its cost and mesh, and of the states the first."""
    stats = statistics(system, trace, trace.estimates())
    return finish(solver, system, trace.z0.detach().unsqueeze(1), stats)


def statistics(system: InitialValue, trace: Trace, estimates: Estimates) -> Stats:
    """The cost of a march, and its mesh; estimates: as the trace gives them."""
    rows, failures = system.rows, trace.failures
    accepted, rejected = trace.counts
    status = 0 if failures is None else failures.status
    together = failures is None and not trace.apart
    return Stats(
        Counts(rows, system.problem.y0.device, trace.nfe, accepted, rejected, status),
        mesh=_mesh(system, trace),
        estimates=estimates if failures is None else _of_solved(estimates, failures),
        starts=_states(system, trace) if system.problem.keep_mesh and not together else None,
        trail=_trail(system, trace) if system.problem.keep_mesh and together else None,
        backward_nfe=[0],
    )


def _of_solved(estimates: Estimates, failures: Failures) -> Estimates:
    """Estimates, of rows that failed off the graph."""
    failed = failures.failed.unsqueeze(1)
    return [x if x is None or x.dim() < 2 else torch.where(failed, x.detach(), x) for x in estimates]


def _mesh(system: InitialValue, trace: Trace) -> Mesh:
    segments, failures = system.segments, trace.failures
    edges = segments.edges if segments.numbers is not None else segments.edges.detach()
    if trace.apart:
        return RowMesh(edges, trace.z0.detach(), trace.tries)
    mesh = SharedMesh(edges, system.rows, trace.places, trace.rejections, segments.numbers)
    return mesh if failures is None else BrokenMesh(mesh, trace.taken(failures))


def _trail(system: InitialValue, trace: Trace) -> Trail:
    return Trail(system, list(trace.nodes), trace.kept, trace.steps[-1].y if trace.steps else trace.z0)


def _states(system: InitialValue, trace: Trace) -> Tensor:
    """The states at the starts of the accepted steps, (B, N, *state), detached."""
    z = [system.state(node.z.detach()) for node in trace.nodes]
    return trace.by_row(z) if z else system.problem.y0.new_zeros(system.rows, 0, *system.shape)
