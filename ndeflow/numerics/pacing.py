"""The pace of an adaptive march: which step is tried next, which is kept, and when to give up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.numerics.controllers import Controller
from ndeflow.numerics.mesh import Place
from ndeflow.numerics.nodes import Nodes
from ndeflow.numerics.solution import NON_FINITE, TOO_MANY, UNDERFLOW, SolveError, Step
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import System
from ndeflow.numerics.trace import Node, Trace


@dataclass(frozen=True)
class Rules:
    """What a pace must know of its solver.

    order: of the error, one more than the less accurate method's. max_steps: attempts before a row fails. method: a
    name for messages. mask: rows may fail one by one; otherwise SolveError.
    """

    controller: Controller
    order: float
    max_steps: int
    method: str
    mask: bool


class Pace(ABC):
    """The memory of one march: `enter` a segment, then try `attempt()` and `take` its step until it is not `open`.

    leg, z, carry: what the next step starts from. Accepted steps go to the trace. Steps may end anywhere, or with noise
    at the ends of nodes.
    """

    leg: System
    z: Tensor
    carry: Any

    def __init__(self, rules: Rules, stepper: Stepper, trace: Trace) -> None:
        self.rules, self.stepper, self.trace = rules, stepper, trace

    @property
    @abstractmethod
    def open(self) -> bool:
        """Whether a row is still short of the segment's end."""

    @abstractmethod
    def enter(self, leg: System, slope: Tensor | None) -> None:
        """Go on from z into a segment. slope: dz/dt there; None: it is evaluated, or known from the segment before."""

    @abstractmethod
    def attempt(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """t, h and the noise of the next step to be tried."""

    @abstractmethod
    def take(self, step: Step) -> None:
        """Judge the step that was tried; raises SolveError where the march cannot go on."""


@final
class Shared(Pace):
    """One step for all rows, judged by the root mean square of the errors of the rows that move.

    dtheta: the next step as a fraction of a segment of mean length `length`. previous: the last accepted error. least:
    the smallest step there, None until one is rejected.
    """

    least: float | None

    def __init__(self, rules: Rules, stepper: Stepper, trace: Trace, nodes: Nodes | None = None) -> None:
        super().__init__(rules, stepper, trace)
        self.z, self.nodes = trace.z0, nodes
        self.length, self.dtheta, self.previous, self.theta = 0.0, 0.0, 1.0, 1.0

    @property
    def open(self) -> bool:
        return self.theta < 1.0

    def enter(self, leg: System, slope: Tensor | None) -> None:
        self.leg, length, self.root = leg, leg.mean_length(), leg.moving**0.5
        self.fresh = leg.renewed or not self.length
        if not self.length:
            self.dtheta = self._start(slope)
        else:
            self.dtheta = min(1.0, self.dtheta * self.length / length)
            if self.fresh:
                self.carry = self.stepper.begin(leg, self.z, slope)
        self.length, self.theta, self.least = length, 0.0, None
        if self.nodes is not None:
            self.nodes.enter(leg)

    def attempt(self) -> tuple[Tensor, Tensor, Tensor | None]:
        theta, rest, noise = self.theta, 1.0 - self.theta, None
        if self.nodes is None:
            size = rest if theta + 1.01 * self.dtheta >= 1.0 else self.dtheta
        else:
            size = self.nodes.fit(theta, self.dtheta)
            noise = self.nodes.normals(theta, size)
        self.size, self.last, self.noise = size, size == rest, noise
        return *self.leg.moment(theta, size), noise

    def take(self, step: Step) -> None:
        ratio, rules, trace = step.norms[0].item() / self.root, self.rules, self.trace
        proposed = self.size * rules.controller.factor(ratio, self.previous, rules.order)
        if ratio <= 1.0:
            self.dtheta = max(proposed, self.dtheta) if self.last else proposed
            self._accept(step, ratio)
        else:
            trace.reject(Place(self.leg.segment, self.theta, self.size), step)
            self.dtheta = proposed
            if proposed < self._least():
                raise self._failure(step, proposed, "the step size underflowed", UNDERFLOW)
        if len(trace.nodes) + trace.rejected >= rules.max_steps and self.open:
            raise self._failure(step, proposed, f"{rules.max_steps} steps were not enough", TOO_MANY)

    def _least(self) -> float:
        """The smallest step, as a fraction of the segment; read from the device once."""
        if self.least is None:
            self.least = max(self.leg.resolution().max().item(), 0.0 if self.nodes is None else self.nodes.least)
        return self.least

    def _accept(self, step: Step, ratio: float) -> None:
        theta, size = self.theta, self.size
        self.trace.accept(Node(self.leg.segment, theta, size, self.z, self.carry, self.fresh, self.noise), step)
        self.z, self.carry, self.fresh = step.y, step.carry, False
        self.theta, self.previous = 1.0 if self.last else theta + size, ratio

    def _start(self, slope: Tensor | None) -> float:
        self.carry, first = self.stepper.start(self.leg, self.z, slope)
        dtheta = first.item()
        if not math.isfinite(dtheta):
            raise non_finite_start(self.leg, self.z, self.carry, self.rules, None, len(self.z))
        return dtheta

    def _failure(self, step: Step, dtheta: float, reason: str, code: int) -> SolveError:
        """The error for a march that stops at a fraction theta of a segment; names the worst row."""
        assert step.ratio is not None
        ratio = step.ratio.detach().nan_to_num(nan=math.inf, posinf=math.inf)
        row = int(ratio.argmax())
        status = torch.where(ratio.isfinite(), (ratio > 1).long() * code, NON_FINITE)
        counts = len(self.trace.nodes), self.trace.rejected
        moment = self.leg.row_moment(self.theta, dtheta, row)
        return failure(self.rules, reason, moment, row, ratio[row].item(), counts, status)


def failure(
    rules: Rules,
    reason: str,
    moment: tuple[float, float],
    row: int,
    ratio: float,
    counts: tuple[int, int],
    status: Tensor,
) -> SolveError:
    """The error for a row that cannot go on from (t, h) = moment; counts: its accepted and rejected steps."""
    broken = not math.isfinite(ratio)
    what = "the field or an integrand is non-finite there" if broken else f"its scaled error is {ratio:.3g}"
    cure = "loosen rtol and atol, raise max_steps or solve in float64"
    cure = "bound the field or its parameters" if broken else cure
    return SolveError(
        f"{reason} at time {moment[0]:.6g} with step size {moment[1]:.3g} in row {row}: {what} ({rules.method}, "
        f"{counts[0]} steps accepted, {counts[1]} rejected); {cure}",
        status,
    )


def non_finite_start(
    leg: System, z: Tensor, slope: Tensor | None, rules: Rules, rows: Tensor | None, total: int
) -> SolveError:
    """The error for a march that cannot begin. rows: which of `total` rows the leg holds; None: all."""
    bad = (z + (leg.slope(z) if slope is None else slope)).isfinite().reshape(len(z), -1).all(dim=1).logical_not()
    place = int(bad.int().argmax())
    rows = torch.arange(total, device=bad.device) if rows is None else rows
    t, h = leg.row_moment(0.0, 1.0, place)
    return SolveError(
        f"the state, an integral or a rate is non-finite at time {t:.6g} in row {int(rows[place])}, before the first "
        f"step over {h:.3g} ({rules.method}); look for NaN in the inputs or in the field's parameters",
        rows.new_zeros(total).index_copy(0, rows, bad.long() * NON_FINITE),
    )
