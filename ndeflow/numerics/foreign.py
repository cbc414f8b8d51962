"""What solvers of other libraries share: cutting the span into calls, and running the library's own adjoint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.mesh import Place, Rejection, SharedMesh
from ndeflow.numerics.segments import wide
from ndeflow.numerics.solution import Counts, Solution, SolveError, Solver, Stats, Step
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.trace import finish


class Backward(NamedTuple):
    """How a library's own continuous adjoint is to run: the tensors it differentiates by, and in which norm."""

    tensors: tuple[Tensor, ...]
    seminorm: bool


@dataclass
class Log:
    """The mesh a library reports as it runs, in fractions of a segment from 0 to 1: times and sizes themselves.

    states: packed, at the starts of the accepted steps.
    """

    accepted: list[Place] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def accept(self, t: float, h: float, z: Tensor) -> None:
        """Add a step of size h, negative backward in time, from (t, z)."""
        self.accepted.append(Place(0, t, h))
        self.states.append(z.detach())

    def reject(self, t: float, h: float) -> None:
        """Note a rejected step; its error is not reported."""
        self.rejected.append(Rejection(len(self.accepted), Place(0, t, h), None))


@dataclass(frozen=True)
class Call:
    """One call of a library over consecutive segments.

    system: set on the first of them. z: the packed state at its start. marks: increasing places, segment + theta,
    from the first segment's start to the last one's end, at which the state is wanted. clock: the time of each
    mark, 0-dim, on the graph. backward: None where autograd records the library's operations.
    """

    system: InitialValue
    z: Tensor
    marks: list[float]
    clock: list[Tensor]
    log: Log
    backward: Backward | None


class Foreign(Solver):
    """A solver of another library, for rows that share their times.

    It serves `Direct` by autograd through the library, and `Backsolve` by the library's own continuous adjoint.
    """

    def integrate(self, problem: Problem) -> Solution:
        system = self._posed(problem)
        packed, stats = self.cross(system, problem.y0, wide(system.times), None)
        return finish(self, system, packed, stats)

    def integrate_adjoint(self, problem: Problem, seminorm: bool) -> Solution:
        """The solution, with gradients of y0, context, parameters and times by the library's continuous adjoint.

        seminorm: leave the parameters' gradients out of the error norm of the backward solve where the library can
        (Kidger, Chen, Lyons 2021, "Hey, that's not an ODE"). `stats.backward_nfe` is filled by the backward pass.
        """
        replay.needs_module(problem, "Backsolve")
        system = self._posed(problem)
        if not torch.is_grad_enabled():
            return self.integrate(problem)
        run = Isolated(self, system, seminorm)
        packed = Isolate.apply(run, *run.inputs)
        return finish(self, system, packed, run.stats)

    def step(
        self, problem: Problem, t: Tensor, y: Tensor, h: Tensor, carry: Any = None, noise: Tensor | None = None
    ) -> Step:
        raise ValueError(
            f"expected a solver with steps of its own, got {type(self).__name__}, whose library has none to give; "
            "use RungeKutta() or Stochastic()"
        )

    @abstractmethod
    def system(self, problem: Problem) -> InitialValue:
        """The problem as this library can solve it; raises ValueError with the cure."""

    @abstractmethod
    def call(self, call: Call) -> Tensor:
        """The packed states at the call's marks: (M, B, ...)."""

    def runs(self, system: InitialValue) -> list[range]:
        """All segments in order, those to be crossed in one call together; one by one if not overridden."""
        return [range(k, k + 1) for k in range(len(system.segments.edges) - 1)]

    def cross(self, system: InitialValue, y0: Tensor, times: Tensor, backward: Backward | None) -> tuple[Tensor, Stats]:
        """Call the library run by run: the packed states (B, M, ...) at the system's times (M,), and the cost."""
        segment, theta, _ = system.places
        numbers, keys = segment.tolist(), (segment + theta.detach()).tolist()
        log, z = Log(), system.join(y0, None)
        found = [z] * len(keys)
        for run in self.runs(system):
            here = [i for i, number in enumerate(numbers) if number in run]
            marks = sorted({float(run.start), *(keys[i] for i in here), float(run.stop)})
            if system.segments.moving[run.start]:
                read = {keys[i]: times[i] for i in here} | {float(run.start): system.segments.edges[run.start]}
                clock = [read.get(mark, system.segments.edges[run.stop]) for mark in marks]
                zs = self.call(Call(system.at(run.start), z, marks, clock, log, backward))
            else:
                zs = z.expand(len(marks), *z.shape)
            for i in here:
                found[i] = zs[marks.index(keys[i])]
            z = zs[-1]
        packed = torch.stack(found, dim=1)
        self._check_finite(packed, times)
        return packed, _statistics(system, log)

    def _posed(self, problem: Problem) -> InitialValue:
        if problem.ts.dim() == 2 or (system := self.system(problem)).segments.edges.dim() == 2:
            raise ValueError(
                f"expected times shared by all rows for {type(self).__name__}, got times or knots for each row; "
                "use RungeKutta() or Stochastic(), which take both"
            )
        with torch.no_grad():
            system.open()
        return system

    def _check_finite(self, packed: Tensor, times: Tensor) -> None:
        bad = packed.detach().isfinite().flatten(2).all(dim=2).logical_not()
        if bool(bad.any()):
            row = int(bad.any(dim=1).int().argmax())
            reached = times.detach()[bad[row]]
            t = reached[(reached - times.detach()[0]).abs().argmin()]
            raise SolveError(
                f"the state or an integral became non-finite in row {row} by time {float(t):.6g} ({self}); "
                "take smaller steps, or bound the field"
            )


class Isolated:
    """A solve on a graph of its own, which starts at copies of its inputs.

    A library's adjoint differentiates by tensors it finds inside the field. Were these on the caller's graph, it
    would follow that graph too, and count its part twice.
    """

    stats: Stats

    def __init__(self, solver: Foreign, system: InitialValue, seminorm: bool) -> None:
        problem = system.problem
        self.solver, self.system, self.seminorm = solver, system, seminorm
        self.parameters = replay.parameters(problem)
        conditions = replay.conditions(problem)
        self.inputs = [problem.y0, system.segments.edges, wide(system.times), *conditions, *self.parameters]
        self.ambient = replay.Ambient.of(problem.y0)

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        own = len(tensors) - len(self.parameters)
        self.copies = [replay.detached(x) for x in tensors[:own]]
        y0, edges, times, *conditions = self.copies
        self.inner = replay.conditioned(self.system, conditions, edges)
        wanted = (*(c for c in conditions if c.requires_grad), *self.parameters)
        with torch.enable_grad():
            self.packed, self.stats = self.solver.cross(self.inner, y0, times, Backward(wanted, self.seminorm))
        self.stats.nfe += 1
        return self.packed.detach()

    def backward(self, cotangent: Tensor) -> list[Tensor | None]:
        before = self.inner.calls
        with self.ambient():
            found = replay.grads([self.packed], [*self.copies, *self.parameters], [cotangent], retain_graph=True)
        if self.stats.backward_nfe is not None:
            self.stats.backward_nfe[0] += self.inner.calls - before
        return found


class Isolate(torch.autograd.Function):
    """(run, *inputs) -> the packed states, with the gradients of an isolated solve."""

    @staticmethod
    def forward(ctx: Any, run: Isolated, *tensors: Tensor) -> Tensor:
        ctx.run = run
        return run.forward(tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.backward(cotangent)


def _statistics(system: InitialValue, log: Log) -> Stats:
    """The cost of all calls together, which all rows made, and the mesh as far as the library reports it."""
    y0 = system.problem.y0
    mesh = SharedMesh(system.segments.edges.new_tensor([0.0, 1.0]), system.rows, log.accepted, log.rejected)
    states = None
    if system.problem.keep_mesh:
        states = [system.state(z) for z in log.states]
        states = torch.stack(states, dim=1) if states else y0.new_zeros(system.rows, 0, *system.shape)
    counts = Counts(system.rows, y0.device, system.calls, len(log.accepted), len(log.rejected))
    return Stats(counts, mesh, starts=states, backward_nfe=[0])
