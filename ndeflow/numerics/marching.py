"""Solvers that march by steps: what they share, so that one adjoint can replay them all."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.masking import broken, masked, mend
from ndeflow.numerics.rowwise import Failures
from ndeflow.numerics.segments import Segments, fixed_segments, wide
from ndeflow.numerics.solution import NON_FINITE, Solution, SolveError, Solver, Step
from ndeflow.numerics.stepper import Eager
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import Node, Trace, solution


class Marching(Solver):
    """A solver that crosses the segments of a system step by step, leaving a `Trace`.

    Subclasses say how the span is cut (`cut`), what one step does (`advance`) and in which order steps are taken
    (`march`). A trace can be replayed: `advance` must be a pure function of its arguments, so that calling it
    again with a node's (t, z, h, carry, noise) gives the same step to the last bit, on the graph where gradients
    are enabled. `z` is the system's packed state: y itself, or (B, D + K) with K integrals beside it.
    """

    on_failure: str = "raise"

    @property
    def masks(self) -> bool:
        return self.on_failure == "mask"

    @property
    def apart(self) -> bool:
        """Whether each row steps at its own pace."""
        return False

    def check(self, problem: Problem) -> None:  # noqa: B027
        """Raise ValueError, with the cure, for a problem this solver cannot solve."""

    @abstractmethod
    def cut(self, problem: Problem) -> Segments:
        """The segments of the span that all rows cross together."""

    @abstractmethod
    def march(self, system: System) -> Trace:
        """Cross all segments; raises SolveError. Recorded by autograd where gradients are enabled."""

    @abstractmethod
    def advance(
        self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        """One pure step of the packed state z from t to t + h.

        t, h: float64, 0-dim or (B, 1, ..., 1) as z has dimensions. carry: what `begin` or the last step gave, a
        tensor or a tuple of tensors; None: nothing is known, evaluate at (t, z) here. noise: as `noises` gave it.
        Where `system.dense`, a step that can be interpolated gives `mid`, and then its incoming and outgoing
        carry are dz/dt at both its ends; without `mid`, states inside steps are interpolated linearly.
        """

    def begin(self, system: System, t: Tensor, z: Tensor, slope: Tensor | None) -> Any:
        """The carry of the first step of a segment after a knot. slope: dz/dt at (t, z), if it is known."""
        return system.slope(z) if slope is None else slope

    def stepping(self, advance: Callable[..., Step]) -> Self:
        """The same solver marching by steps of another kind, which `advance` takes as its own method would."""
        other = copy.copy(self)
        object.__setattr__(other, "advance", advance)  # solvers are frozen
        return other

    def system(self, problem: Problem) -> InitialValue:
        """The problem as this solver marches it, checked."""
        self.check(problem)
        return InitialValue(problem, self.cut(problem))

    def engage(self, system: InitialValue, recording: bool, keeping: bool) -> Marching:
        """Give the system an engine, where this solver has one for it; returns the solver to march it with.

        recording: the solve records gradients. keeping: then what steps compute is kept for the backward pass.
        """
        return self

    def integrate(self, problem: Problem) -> Solution:
        return masked(_integrated, self, problem)

    def step(
        self,
        problem: Problem,
        t: Tensor,
        y: Tensor,
        h: Tensor,
        carry: Any = None,
        noise: Tensor | None = None,
    ) -> Step:
        """One pure step of the state alone; integrals beside it are left out, a control path is used whole."""
        system = InitialValue(replace(problem, integrands=(), probes=None), None)
        return self.advance(system, t, y, h, carry, noise)


class FixedMarching(Marching):
    """A marching solver that takes `steps` equal steps a segment.

    Segments are the save intervals, or the control path's pieces where there is a path: then save times must be
    knots. A segment in which no row moves is skipped, and its numbers of steps with it.
    """

    steps: int
    randoms: ClassVar[int] = 0  # how many tensors `numbers` gives for a step

    @property
    def carries(self) -> int:
        """How many tensors a step must be handed by the one before."""
        return 0

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Evaluations of the field, of an SDE the drift, in a step."""

    def cut(self, problem: Problem) -> Segments:
        return fixed_segments(problem)

    def noises(self, system: System, first: int) -> Sequence[Any]:
        """The noise of the `steps` steps of a segment, the first of which is number `first` of the whole span."""
        return [None] * self.steps

    def numbers(self, system: System, first: int, size: int) -> Sequence[Any]:
        """What `noise` makes it from, for every `size` steps of a segment: tensors, the same for all that follow."""
        return [None] * (self.steps // size)

    def noise(self, system: System, numbers: Any, j: int, z: Tensor) -> Tensor | None:
        """The noise of step j after the one that `numbers` are of."""
        return None

    def noisy(self, system: InitialValue, t: Tensor, z: Tensor) -> list[Tensor]:
        """What the right-hand side gives beside the rate, at (t, z)."""
        return []

    def undo(self, system: System, t: Tensor, z: Tensor, h: Tensor, carry: Any, noise: Any) -> tuple[Tensor, Any]:
        """z and carry at t, from those at t + h, of a method whose steps can be taken back."""
        raise NotImplementedError(f"{self} takes no steps back")

    def trace(self, z: Tensor) -> Trace:
        """Of a march that begins."""
        return Trace(z)

    def march(self, system: System) -> Trace:
        stepper = system.engine or Eager(self)
        z, slope = stepper.open(system)
        trace, carry, first = self.trace(z), None, True
        for leg in system.legs():
            fresh = first or leg.renewed
            if fresh:
                carry, slope, first = stepper.begin(leg, z, slope), None, False
            for j, noise in enumerate(self.noises(leg, leg.segment * self.steps)):
                node = Node(leg.segment, j / self.steps, 1 / self.steps, z, carry, fresh and j == 0, noise)
                t, h = leg.moment(node.theta, node.dtheta)
                step = stepper.step(leg, t, z, h, carry, noise)
                trace.accept(node, step)
                z, carry = step.y, step.carry
        stepper.close(system)
        trace.nfe = system.calls
        if trace.steps and bool(broken(trace.steps[-1]).any()):
            trace.failures = self._failures(system, trace)
            if not self.masks:
                raise self._error(system, trace.failures, trace.parts)
            mend(trace)
        return trace

    def inside(self, leg: System, trace: Trace, n: int) -> Iterator[tuple[float, float, Step]]:
        """The steps that step n of a trace stands for: where each starts, how much of the leg it covers, and it."""
        yield trace.nodes[n].theta, trace.nodes[n].dtheta, trace.steps[n]

    def _failures(self, system: System, trace: Trace) -> Failures:
        """Which rows failed, and at which of the steps, or of the parts that these stand for."""
        bad = torch.stack([broken(step) for step in trace.steps])
        failed, first = bad.any(dim=0), bad.int().argmax(dim=0)
        stopped = wide(torch.full(failed.shape, torch.inf, device=failed.device))
        for n in first[failed].unique().tolist():
            segment = trace.nodes[n].segment
            parts = [(segment + theta, broken(step)) for theta, _, step in self.inside(system.at(segment), trace, n)]
            starts, found = zip(*parts, strict=True)
            here = stopped.new_tensor(starts)[torch.stack(found).int().argmax(dim=0)]
            stopped = torch.where(failed & (first == n), here, stopped)
        return Failures(failed.long() * NON_FINITE, stopped)

    def _error(self, system: System, failures: Failures, parts: int) -> SolveError:
        """The first failure, of a march whose steps stand for so many each."""
        place = failures.stopped.min()
        row, segment = int((failures.stopped == place).int().argmax()), int(place)
        t, h = system.at(segment).row_moment(place.item() - segment, 1 / (self.steps * parts), row)
        return SolveError(
            f"the state or an integral became non-finite in row {row}, in the step of size {h:.3g} from time {t:.6g} "
            f"({self}); take more steps, or bound the field",
            failures.status,
        )


def _integrated(solver: Marching, problem: Problem) -> Solution:
    system = solver.system(problem)
    return solution(solver, system, solver.march(system))
