"""Steps that rows take each at their own pace: as tables with a line a row, and how save times are read from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from ndeflow.numerics.mesh import Attempts, Mesh
from ndeflow.numerics.reading import StepPlan
from ndeflow.numerics.system import InitialValue

if TYPE_CHECKING:
    from ndeflow.numerics.trace import Trace


class Table:
    """R entries, in order of time, as a table whose line b holds those of row b from the left.

    owner: (R,) int64, the row of each entry. rank: (R,) its place in the line. counts: (B,). width: N, the longest.
    """

    def __init__(self, owner: Tensor, rows: int) -> None:
        self.owner, self.rows = owner, rows
        self.counts = owner.new_zeros(rows).index_add(0, owner, torch.ones_like(owner))
        order = owner.argsort(stable=True)
        first = self.counts.cumsum(0) - self.counts
        place = torch.arange(len(owner), device=owner.device) - first[owner[order]]
        self.rank = torch.empty_like(owner).index_copy_(0, order, place)
        self.width = int(self.counts.max())

    @property
    def filled(self) -> Tensor:
        """(B, N) bool: where the table has an entry."""
        return torch.arange(self.width, device=self.owner.device) < self.counts.unsqueeze(1)

    def spread(self, values: Tensor, spare: int = 0) -> Tensor:
        """(R, ...) as (B, N + spare, ...), 0 where there is no entry."""
        table = values.new_zeros(self.rows, self.width + spare, *values.shape[1:])
        return table.index_put((self.owner, self.rank), values)


class Try(NamedTuple):
    """One attempt of L rows. rows: (L,), or None: all. theta, dtheta, ratio: (L,), as wide as times are.

    verdict: (L,) int64, 1 accepted, -1 rejected, 0 to be tried again as it was.
    """

    segment: int
    rows: Tensor | None
    theta: Tensor
    dtheta: Tensor
    ratio: Tensor
    verdict: Tensor


class Failures(NamedTuple):
    """Rows that could not be solved. status: (B,) as in `Stats`. stopped: (B,), the place segment + theta where a row
    failed; infinite where it did not."""

    status: Tensor
    stopped: Tensor

    @property
    def failed(self) -> Tensor:
        return self.status != 0


def owners(rows: Sequence[Tensor | None], z0: Tensor) -> Tensor:
    """The rows of several subsets one after another; None: all rows of z0."""
    every = torch.arange(len(z0), device=z0.device)
    return torch.cat([every[:0], *(every if r is None else r for r in rows)])


def numbers(segments: Sequence[int], sizes: Sequence[int], like: Tensor) -> Tensor:
    """Segment i as often as sizes[i] says, in the type of `like`."""
    return like.new_tensor(segments).repeat_interleave(
        torch.tensor(sizes, dtype=torch.int64, device=like.device), output_size=sum(sizes)
    )


@final
@dataclass(frozen=True)
class RowMesh(Mesh):
    """The steps that rows attempted each at its own pace. edges: (S + 1,) or (S + 1, B), detached."""

    edges: Tensor
    z0: Tensor
    tries: Sequence[Try]

    @cached_property
    def _tried(self) -> tuple[Tensor, ...]:
        """owner, verdict, time, size and ratio of every attempt that was judged, (R,) each."""
        owner, tries = owners([x.rows for x in self.tries], self.z0), self.tries
        none = self.edges.new_zeros(0)
        theta, dtheta, ratio = (torch.cat([none, *column]) for column in zip(*(x[2:5] for x in tries), strict=True))
        verdict = torch.cat([x.verdict for x in tries])
        segment = numbers([x.segment for x in tries], [len(x.theta) for x in tries], owner)
        start, length = (_of(x, segment, owner) for x in (self.edges[:-1], self.edges.diff(dim=0)))
        judged = verdict != 0
        return tuple(x[judged] for x in (owner, verdict, start + theta * length, dtheta * length, ratio))

    def steps(self) -> tuple[Tensor, Tensor]:
        if not self.tries:
            return self.edges.new_zeros(len(self.z0), 0), self.edges.new_zeros(len(self.z0), 0)
        owner, verdict, times, steps, _ = self._tried
        kept = verdict > 0
        return self._laid(Table(owner[kept], len(self.z0)), times[kept], steps[kept])

    def attempts(self, error: Tensor | None) -> Attempts:
        if not self.tries:
            return Attempts(*self.steps(), error, self.edges.new_zeros(len(self.z0), 0, dtype=torch.bool))
        owner, verdict, times, steps, ratio = self._tried
        table = Table(owner, len(self.z0))
        ratio = ratio if error is None else ratio.to(error.dtype)
        return Attempts(*self._laid(table, times, steps), table.spread(ratio), table.spread(verdict) > 0)

    def _laid(self, table: Table, times: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Both as tables; behind its last step a row stands where it ended."""
        starts, sizes = table.spread(times), table.spread(steps)
        first = self.edges[0].expand(table.rows).unsqueeze(1)
        ends = torch.cat([first, starts + sizes], dim=1).gather(1, table.counts.unsqueeze(1))
        return torch.where(table.filled, starts, ends), sizes


def _of(values: Tensor, segment: Tensor, owner: Tensor) -> Tensor:
    """Of (S,) or (S, B) the entries at a segment and a row: shaped as these."""
    return values[segment] if values.dim() == 1 else values[segment, owner]


@final
@dataclass(frozen=True)
class RowPlan(StepPlan):
    """Of steps that rows took each at its own pace.

    What is read from lies in one line: the B start states, then the rows of each step. needed: (U,) places in it,
    rising. sizes: how many rows each step has. late: (B, M) bool, times that a failed row did not reach, or None.
    """

    needed: Tensor
    sizes: list[int]
    failed: Tensor | None
    late: Tensor | None

    def gather(self, trace: Trace) -> list[Tensor]:
        """Each (U, ...) over the U needed places."""
        z0, steps, nodes = trace.z0, trace.steps, trace.nodes
        ends = [z0, *(step.y for step in steps)]
        if self.stacks == 1:
            return [torch.cat(ends)[self.needed]]
        mid = [z0, *(step.mid for step in steps if step.mid is not None)]
        still = torch.zeros_like(z0)
        starts, slopes = [z0, *(node.z for node in nodes)], [still, *(node.carry for node in nodes)]
        return [torch.cat(x)[self.needed] for x in (starts, slopes, mid, ends, [still, *(s.carry for s in steps)])]

    def pick(self, stack: Tensor) -> Tensor:
        return stack[self.index]

    def read(self, stacks: Sequence[Tensor]) -> Tensor:
        packed = super().read(stacks)
        if self.failed is None or self.late is None:
            return packed
        failed, late = (x.view(*x.shape, *[1] * (packed.dim() - x.dim())) for x in (self.failed, self.late))
        return torch.where(late, torch.nan, torch.where(failed, packed.detach(), packed))

    @property
    def names(self) -> str:
        return {1: "y", 5: "zkmyl"}[self.stacks]

    def parted(self, stack: Tensor) -> dict[int, Tensor]:
        """(U, ...) as one tensor for each step, over all its rows, 0 where they are not read; -1: the start states."""
        parts, first = {}, 0
        for n, (size, (a, b)) in enumerate(zip([len(self.index), *self.sizes], self._slices, strict=True)):
            if b > a:
                part = stack.new_zeros(size, *stack.shape[1:])
                parts[n - 1] = part.index_copy(0, self.needed[a:b] - first, stack[a:b])
            first += size
        return parts

    @cached_property
    def _slices(self) -> list[tuple[int, int]]:
        """Where in `needed` the start states and each step lie."""
        bounds = torch.tensor([0, len(self.index), *self.sizes], device=self.needed.device).cumsum(0)
        cuts = torch.searchsorted(self.needed, bounds).tolist()
        return list(zip(cuts[:-1], cuts[1:], strict=True))


def row_plan(system: InitialValue, trace: Trace) -> RowPlan:
    """The plan of a march whose rows step each at its own pace."""
    segment, theta = (x.expand(system.rows, -1) for x in system.places[:2])
    sizes = [len(node.z) for node in trace.nodes]
    key, line = segment + theta.detach(), Line.of(trace, theta)
    failed, late = None, None
    if trace.failures is not None:
        failed, late = trace.failures.failed, key > trace.failures.stopped.unsqueeze(1)
    if not system.dense:
        done = torch.searchsorted(line.ends, key.contiguous(), right=True)
        needed, index = line.places(done).unique(return_inverse=True)
        return RowPlan(index, theta, theta, 1, needed, sizes, failed, late)
    n = torch.searchsorted(line.ends, key.contiguous())
    n = torch.minimum(n, line.table.counts.unsqueeze(1) - 1)
    s, h = line.within(n, segment, theta, late, system.segments.edges)
    needed, index = line.places(n + 1).unique(return_inverse=True)
    return RowPlan(index, s, h, 5, needed, sizes, failed, late)


@dataclass(frozen=True)
class Line:
    """The accepted steps of each row, (B, N + 1), with at least one column to spare.

    segment, begin, size: where a step starts, as segment + theta, and how much of its segment it covers. ends: where
    it ends, exactly where the next one starts or at the segment's end; infinite where there is no step.
    """

    table: Table
    segment: Tensor
    begin: Tensor
    size: Tensor
    ends: Tensor

    @classmethod
    def of(cls, trace: Trace, like: Tensor) -> Line:
        table, nodes = trace.table, trace.nodes
        none = like.detach().new_zeros(0)
        theta, size = (torch.cat([none, *x]) for x in ([n.theta for n in nodes], [n.dtheta for n in nodes]))
        number = numbers([n.segment for n in nodes], [len(n.z) for n in nodes], none)
        segment, begin, size = table.spread(torch.stack([number, number + theta, size], dim=1), 1).unbind(-1)
        nth, counts = torch.arange(table.width + 1, device=like.device), table.counts.unsqueeze(1)
        goes_on = (nth < counts - 1) & (segment.roll(-1, 1) == segment)
        ends = torch.where(goes_on, begin.roll(-1, 1), segment + 1)
        if trace.failures is not None:
            ends = torch.minimum(ends, trace.failures.stopped.unsqueeze(1))
        return cls(table, segment, begin, size, torch.where(nth < counts, ends, torch.inf))

    def places(self, done: Tensor) -> Tensor:
        """Where in line a row's state after `done` (B, M) steps is, or its last one of them: 0 is its start."""
        rows, owner = self.table.rows, self.table.owner
        places = self.table.spread(rows + torch.arange(len(owner), device=owner.device), 1)
        start = torch.arange(rows, device=owner.device).unsqueeze(1)
        return torch.where(done > 0, places.gather(1, (done - 1).clamp(min=0)), start)

    def within(
        self, n: Tensor, segment: Tensor, theta: Tensor, late: Tensor | None, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The fraction s of step n (B, M) at each time, and its size h; at a time between steps s is 0 or 1."""
        moved, n = n >= 0, n.clamp(min=0)
        own, begin, size = (x.gather(1, n) for x in (self.segment, self.begin, self.size))
        inside = moved & (own == segment) if late is None else moved & (own == segment) & ~late
        outside = (moved & (segment + theta.detach() > begin)).to(begin.dtype)
        s = torch.where(inside, (theta - (begin - own)) / torch.where(inside, size, 1.0), outside)
        rows = torch.arange(len(n), device=n.device).unsqueeze(1)
        return s, _of(edges.diff(dim=0), own.long(), rows) * size
