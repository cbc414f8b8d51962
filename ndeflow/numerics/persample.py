"""Each row at its own pace: accepted, rejected and finished row by row."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.nodes import RowNodes
from ndeflow.numerics.pacing import Pace, Rules, failure, non_finite_start
from ndeflow.numerics.rowwise import Failures, Try, owners
from ndeflow.numerics.solution import NON_FINITE, TOO_MANY, UNDERFLOW, SolveError, Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Node, Trace


class Clock(NamedTuple):
    """Of each of L rows, (L,): where it is in the segment, its next step and the smallest it may take, as fractions;
    its last accepted error; how many steps it tried."""

    theta: Tensor
    dtheta: Tensor
    least: Tensor
    previous: Tensor
    tries: Tensor

    def of(self, rows: Tensor) -> Clock:
        return Clock(*torch.stack(self)[:, rows])


class Left(NamedTuple):
    """Rows at the end of a segment, None: all, their packed states, and dz/dt there or None."""

    rows: Tensor | None
    z: Tensor
    carry: Any


@final
class PerSample(Pace):
    """A step for each row, judged by its own error. All rows cross a segment together; a row at its end is evaluated
    no more until all are there.

    An attempt reads one row of numbers from the device. Where autograd records and a row's step is not finite, no
    row takes its step, for no gradient may pass through that one: the others try the same again. Where rows may fail
    one by one, one that does leaves with its last accepted state.
    """

    leg: InitialValue

    def __init__(self, rules: Rules, stepper: Stepper, trace: Trace, nodes: RowNodes | None = None) -> None:
        super().__init__(rules, stepper, trace)
        self.nodes, self.count, self.unstarted = nodes, 0, len(trace.z0)
        self.left: list[Left] = [Left(None, trace.z0, torch.zeros_like(trace.z0))]

    @property
    def open(self) -> bool:
        return self.count > 0

    def enter(self, leg: System, slope: Tensor | None) -> None:
        assert isinstance(leg, InitialValue)
        z, carry = self._gathered()
        self.whole, self.left = leg, []
        self.rows = self._moving(leg, z, carry)
        if not self.open:
            return
        self.leg, self.z, self.carry = leg, z, carry
        if self.rows is not None:
            self.leg, self.z, self.carry = leg.of(self.rows), z[self.rows], replay.taken(carry, self.rows)
        if self.nodes is not None:
            self.nodes.enter(self.leg, self.rows)
        self._wind(slope if slope is None or self.rows is None else slope[self.rows])
        if self.nodes is not None and self.open:
            self.reach = self._ahead().tolist()

    def _gathered(self) -> tuple[Tensor, Any]:
        """States and carry of all rows, from what they left."""
        rows, states, carries = zip(*self.left, strict=True)
        if len(self.left) == 1:
            return states[0], carries[0]
        order = owners(rows, self.trace.z0).argsort()
        carry = None if any(x is None for x in carries) else torch.cat(carries)[order]
        return torch.cat(states)[order], carry

    def _moving(self, leg: InitialValue, z: Tensor, carry: Any) -> Tensor | None:
        """The rows that move in this segment, None: all; the others have left it already."""
        failures, self.count = self.trace.failures, leg.moving
        if failures is None and leg.moving == leg.rows:
            return None
        moving = (leg.length.detach() != 0).flatten().expand(leg.rows)
        if failures is not None:
            moving = moving & ~failures.failed
            self.count = int(moving.sum())
        rows, still = _parted(moving, self.count)
        self.left.append(Left(still, z[still], replay.taken(carry, still)))
        return rows

    def _wind(self, slope: Tensor | None) -> None:
        """The clock at the start of a segment: first steps, or those of the segment before at their size."""
        length = self._length()
        if self.unstarted == len(self.trace.z0):
            self.memory = length.new_zeros(3, self.unstarted)
            self.memory[1] = 1.0
        size, previous, tries = self.memory if self.rows is None else self.memory[:, self.rows]
        before = self.unstarted
        dtheta = self._first(size == 0, (size / length).clamp(max=1.0), slope)
        least = self.leg.resolution().expand(self.count)
        least = least if self.nodes is None else least.clamp(min=self.nodes.least)
        self.clock = Clock(torch.zeros_like(length), dtheta, least, previous, tries)
        failed = dtheta.isfinite().logical_not()
        count = int(failed.sum()) if self.unstarted < before else 0
        if count and not self.rules.mask:
            raise non_finite_start(self.leg, self.z, self.carry, self.rules, self.rows, len(self.trace.z0))
        if count:
            self._leave(failed, count, failed.long() * NON_FINITE)

    def _first(self, new: Tensor, dtheta: Tensor, slope: Tensor | None) -> Tensor:
        """dtheta, with the first steps of rows that have not moved before; makes the carry."""
        count = int(new.sum()) if self.unstarted else 0
        self.unstarted, self.fresh = self.unstarted - count, count > 0 or self.leg.renewed
        if count == self.count:
            self.carry, first = self.stepper.start(self.leg, self.z, slope)
            return first
        if self.fresh:
            self.carry = self.stepper.begin(self.leg, self.z, slope)
        if count == 0:
            return dtheta
        places, _ = _parted(new, count)
        leg = self.whole.of(self._numbers(places))
        _, first = self.stepper.start(leg, self.z[places], replay.taken(self.carry, places))
        return dtheta.index_copy(0, places, first)

    def attempt(self) -> tuple[Tensor, Tensor, Tensor | None]:
        theta, dtheta = self.clock[:2]
        rest, noise = 1.0 - theta, None
        if self.nodes is None:
            self.size = torch.where(theta + 1.01 * dtheta >= 1.0, rest, dtheta)
        else:
            self.size = self.nodes.fit(theta, dtheta)
            noise = self.nodes.normals(theta, self.size, *self.reach)
        self.last, self.noise = self.size == rest, noise
        return *self.leg.moment(theta, self.size), noise

    def _ahead(self) -> Tensor:
        """Which nodes the next steps need."""
        assert self.nodes is not None
        theta, dtheta = self.clock[:2]
        return self.nodes.reach(theta, self.nodes.fit(theta, dtheta))

    def take(self, step: Step) -> None:
        assert step.ratio is not None
        clock, size, ratio = self.clock, self.size, step.ratio.detach().to(self.size.dtype)
        good = ratio <= 1.0
        accepted = good
        if step.y.requires_grad and torch.is_grad_enabled():
            accepted = good & ratio.isfinite().all()
        held, ended, first = good & ~accepted, accepted & self.last, accepted & (clock.theta == 0)
        fresh = first if self.fresh else torch.zeros_like(first)
        proposed = size * self.rules.controller.factors(ratio, clock.previous, self.rules.order)
        tries = clock.tries + ~held
        stuck, spent = ~good & (proposed < clock.least), ~ended & (tries >= self.rules.max_steps)
        failed = stuck | spent
        verdict = accepted.long() - (~good).long()
        self.trace.tries.append(Try(self.leg.segment, self.rows, clock.theta, size, ratio, verdict))
        dtheta = torch.where(held, clock.dtheta, torch.where(ended, proposed.maximum(clock.dtheta), proposed))
        theta = torch.where(ended, 1.0, torch.where(accepted, clock.theta + size, clock.theta))
        previous = torch.where(accepted, ratio, clock.previous)
        self.clock = Clock(theta, dtheta, clock.least, previous, tries)
        counts = torch.stack([accepted, fresh, ended, failed]).sum(dim=1)
        counts = (counts if self.nodes is None else torch.cat([counts, self._ahead()])).tolist()
        self.reach = counts[4:]
        self._accept(step, clock.theta, accepted, fresh, *counts[:2])
        status = torch.where(stuck, torch.where(ratio.isfinite(), UNDERFLOW, NON_FINITE), failed.long() * TOO_MANY)
        if counts[3] and not self.rules.mask:
            raise self._failure(step, status)
        if counts[2] or counts[3]:
            self._leave(ended | failed, counts[2] + counts[3], status if counts[3] else None)

    def _accept(self, step: Step, theta: Tensor, accepted: Tensor, fresh: Tensor, count: int, count_fresh: int) -> None:
        """Note the accepted steps from theta, those from the start of the segment apart, and go on from their ends."""
        if count == 0:
            return
        if count == self.count and count_fresh in (0, count):
            self._note(step, theta, None, count_fresh > 0)
        else:
            order = (accepted.long() + fresh).argsort(descending=True, stable=True)
            for places, is_fresh in ((order[:count_fresh], True), (order[count_fresh:count], False)):
                if len(places):
                    self._note(step, theta, places, is_fresh)
        went = self.leg.column(accepted)
        self.z = step.y if count == self.count else torch.where(went, step.y, self.z)
        if step.carry is None or count == self.count:
            self.carry = step.carry
        else:
            self.carry = torch.where(went, step.carry, self.carry)

    def _note(self, step: Step, theta: Tensor, places: Tensor | None, fresh: bool) -> None:
        """Note the step of the live rows at some places; None: of all."""
        start = [replay.taken(x, places) for x in (theta, self.size, self.z, self.carry)]
        noise, rows = replay.taken(self.noise, places), self.rows
        if places is not None:
            rows = self._numbers(places)
            own = {k: x[places] for k, x in step._asdict().items() if isinstance(x, Tensor)}
            step = step._replace(**own, kept=None)  # what was kept is of all rows
        self.trace.accept(Node(self.leg.segment, *start, fresh=fresh, noise=noise, rows=rows), step)

    def _leave(self, gone: Tensor, count: int, status: Tensor | None) -> None:
        """Rows at the end of the segment, or failed, leave; the others stay. status: (L,), None: none failed."""
        out, stay = _parted(gone, count)
        rows, clock = self._numbers(out), self.clock.of(out)
        self.left.append(Left(rows, self.z[out], replay.taken(self.carry, out)))
        self.memory[:, rows] = torch.stack([clock.dtheta * self._length()[out], clock.previous, clock.tries])
        if status is not None:
            self._fail(rows, status[out], clock.theta)
        self.count -= count
        if self.open:
            self.rows, self.clock = self._numbers(stay), self.clock.of(stay)
            self.leg, self.z, self.carry = self.whole.of(self.rows), self.z[stay], replay.taken(self.carry, stay)
            if self.nodes is not None:
                self.nodes.keep(self.leg, stay)

    def _fail(self, rows: Tensor, status: Tensor, theta: Tensor) -> None:
        total = len(self.trace.z0)
        if self.trace.failures is None:
            self.trace.failures = Failures(status.new_zeros(total), theta.new_full((total,), torch.inf))
        failures = self.trace.failures
        failures.status[rows] = status
        failures.stopped[rows] = torch.where(status > 0, self.leg.segment + theta, torch.inf)

    def _length(self) -> Tensor:
        """The lengths (L,) of the live rows' segment."""
        return self.leg.length.detach().abs().flatten().expand(self.count)

    def _numbers(self, places: Tensor) -> Tensor:
        """The rows of the batch at some places among the live ones."""
        return places if self.rows is None else self.rows[places]

    def _failure(self, step: Step, status: Tensor) -> SolveError:
        row = int((status > 0).int().argmax())
        ratio: Any = step.ratio
        code, number = int(status[row]), row if self.rows is None else int(self.rows[row])
        moment = self.leg.row_moment(self.clock.theta[row].item(), self.clock.dtheta[row].item(), row)
        mine = [x.verdict[owners([x.rows], self.trace.z0) == number] for x in self.trace.tries]
        verdict = torch.cat(mine)
        every = status.new_zeros(len(self.trace.z0))
        every[self._numbers(torch.arange(self.count, device=status.device))] = status
        reason = f"{self.rules.max_steps} steps were not enough" if code == TOO_MANY else "the step size underflowed"
        counts = int((verdict > 0).sum()), int((verdict < 0).sum())
        return failure(self.rules, reason, moment, number, ratio[row].item(), counts, every)


def _parted(chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places where (L,) bool is True, of which there are `count`, and the others; nothing is read."""
    order = chosen.long().argsort(descending=True, stable=True)
    return order[:count], order[count:]
