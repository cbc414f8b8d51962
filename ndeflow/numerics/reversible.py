"""Gradients of a discrete solve whose steps are taken back one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.adjoint import replayed
from ndeflow.numerics.coupled import Coupled
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.masking import masked
from ndeflow.numerics.mesh import Place
from ndeflow.numerics.norms import row_norms
from ndeflow.numerics.origins import Origins, check_unmoved
from ndeflow.numerics.purity import repeatable
from ndeflow.numerics.reading import Plan
from ndeflow.numerics.solution import Adjoint, Solution, SolveError, Solver
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.tape import Reads, TakenBack, digits
from ndeflow.numerics.trace import finish, plan, solution, statistics

CURE = "use Checkpointed(), or float64"


@final
@dataclass(frozen=True)
class Reversible(Adjoint):
    """Couples the solver's method with its own reverse, and takes the steps back in the backward pass.

    The solve is that of the `Coupled` method: of the same order, for two steps of the method a step. Its gradient
    is that of the discrete solve to rounding. Between the passes a memory that does not grow with the number of
    steps is kept: the last pair of states, the mesh as numbers, and what the save times are read from; while it
    marches, the forward pass holds two states a step. Times, context, integrands and dense output are
    differentiated; not error and stiffness, and not twice. The field must be a module that gives the same values
    when called again. All rows share their steps; `stats.backward_nfe` is filled by the backward pass.

    coupling: in (0, 1]. Each step taken back multiplies rounding by 1 / coupling, so that N steps can be taken back
    where N log(1 / coupling) <= log(1 / eps) / 2, half the digits: 18,000 steps in float64 at 0.999, 7,900 in
    float32. Values further from 1 damp the difference of the two states more.

    An SDE is solved by `Stochastic("reversible_heun")`, whose steps can be taken back as they are: nothing is coupled,
    one evaluation a step forward and two in the backward pass. Not along a control path.

    Raises ValueError for a coupling out of its range, another method for an SDE, a field that is not a module, steps to
    be compiled (of an ODE) and other solvers than RungeKutta and FixedRungeKutta; SolveError for too many steps, and in
    the backward pass where less than half the digits of y0 come back, as for solutions that contract by more.
    McCallum, Foster 2024, "Efficient, accurate and stable gradients for neural ODEs".
    """

    coupling: float = 0.999

    differentiable_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.coupling <= 1:
            raise ValueError(f"expected a coupling in (0, 1], got {self.coupling}; 0.999 suits most solves")

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        if isinstance(problem.field, SDE):
            return masked(_own_reverse, _taken_back(solver, problem), problem)
        return masked(self._solve, self._checked(solver, problem), problem)

    def _solve(self, solver: Marching, problem: Problem) -> Solution:
        coupled = Coupled(solver, self.coupling)
        system, ambient = coupled.base.system(problem), replay.Ambient.of(problem.y0)
        with torch.no_grad(), ambient(), repeatable(replay.modules(problem), problem.y0.device):
            trace, end = coupled.march(system)
            stats = statistics(system, trace, trace.estimates_later())
        how = plan(system, trace)
        if torch.is_grad_enabled():
            self._check(len(trace.nodes), end.dtype)
        mesh = [Place(node.segment, node.theta, node.dtheta) for node in trace.nodes]
        sweep = Sweep(coupled, system, ambient, how, mesh)
        inputs = [system.segments.edges, problem.y0, *replay.conditions(problem), *sweep.parameters]
        stats.backward_nfe = sweep.backward_nfe
        return finish(solver, system, how.read(Rewound.apply(sweep, how.gather(trace), end, *inputs)), stats)

    def _checked(self, solver: Solver, problem: Problem) -> Marching:
        if not isinstance(solver, (RungeKutta, FixedRungeKutta)):
            raise ValueError(
                f"expected RungeKutta or FixedRungeKutta for Reversible, got {type(solver).__name__}; "
                "use Checkpointed(), or Direct()"
            )
        if solver.apart:
            raise ValueError("expected batching=shared for Reversible, got per_sample; use shared, or Checkpointed()")
        if solver.compile == "on":
            raise ValueError("expected steps that need not be compiled for Reversible, got compile=on; leave it auto")
        replay.needs_module(problem, "Reversible")
        return solver

    def _check(self, steps: int, dtype: torch.dtype) -> None:
        growth, limit = -steps * math.log(self.coupling), -math.log(digits(dtype))
        if growth > limit:
            raise SolveError(
                f"{steps} steps cannot be taken back in {dtype} at coupling {self.coupling}, which multiplies rounding "
                f"by {math.exp(min(growth, 700)):.1e}; {CURE}, or a coupling of at least {math.exp(-limit / steps):.6f}"
            )


def _taken_back(solver: Solver, problem: Problem) -> Stochastic:
    """The solver of an SDE whose steps can be taken back as they are; raises ValueError for another."""
    if not isinstance(solver, Stochastic) or not solver.reversible:
        raise ValueError(
            f"expected Stochastic('reversible_heun') for Reversible with an SDE, got {solver}; use it for an SDE in "
            "the sense of Stratonovich, or Checkpointed()"
        )
    replay.needs_module(problem, "Reversible")
    return solver


def _own_reverse(solver: Marching, problem: Problem) -> Solution:
    system, recording = solver.system(problem), replay.records(problem)
    if system.segments.pieces is not None:
        raise ValueError("expected an SDE without control path for Reversible, got one with; use Checkpointed()")
    marched = solver.engage(system, recording, keeping=False)
    if not recording:
        return solution(solver, system, marched.march(system))
    return replayed(solver, marched, system, TakenBack)


class Rewound(torch.autograd.Function):
    """(edges, y0, *conditions, *parameters) -> stacks, given the last pair; steps are taken back in the backward."""

    @staticmethod
    def forward(ctx: Any, sweep: Sweep, stacks: list[Tensor], end: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.sweep = sweep
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(end, *inputs)
        return tuple(stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        end, edges, y0, *rest = ctx.saved_tensors
        return None, None, None, *ctx.sweep.run(end, edges, y0, rest, cotangents)


class Pairs(NamedTuple):
    """Both states at one end of a step, and their cotangents."""

    y: Tensor
    z: Tensor
    to_y: Tensor
    to_z: Tensor


class Sweep:
    """The backward pass: from the last pair to the first, two recorded steps of the base method a step.

    Of the forward pass it holds the mesh, as numbers, and no state.
    """

    def __init__(
        self, coupled: Coupled, system: InitialValue, ambient: replay.Ambient, how: Plan, mesh: Sequence[Place]
    ) -> None:
        self.coupled, self.system, self.ambient, self.plan, self.mesh = coupled, system, ambient, how, mesh
        self.parameters = replay.parameters(system.problem)
        self.backward_nfe = [0]

    def run(
        self, end: Tensor, edges: Tensor, y0: Tensor, rest: list[Tensor], cotangents: tuple[Tensor | None, ...]
    ) -> list[Tensor | None]:
        """Gradients of (edges, y0, *conditions, *parameters); raises SolveError unless the steps lead back to y0."""
        check_unmoved(self.system.problem, self.parameters)
        edges, *conditions = [replay.detached(x) for x in (edges, *rest[: len(rest) - len(self.parameters)])]
        system = replay.conditioned(self.system, conditions, edges)
        totals = Totals([edges, *conditions, *self.parameters], system.problem)
        reads, (y, z) = Reads.of(self.plan, cotangents), end.unbind(1)
        at_end = reads.states.get(len(self.mesh), torch.zeros_like(y))
        pairs = Pairs(y, z, at_end, torch.zeros_like(z))
        with torch.enable_grad(), self.ambient():
            for n in reversed(range(len(self.mesh))):
                pairs = self._back(system, n, pairs, reads, totals)
        self.backward_nfe[0] += system.calls
        totals.origins.check()
        self._check(y0, *(system.state(x) for x in (pairs.y, pairs.z, end[:, 0])))
        at_edges, *others = totals.found
        return [at_edges, system.state(pairs.to_y + pairs.to_z), *others]

    def _back(self, system: InitialValue, n: int, after: Pairs, reads: Reads, totals: Totals) -> Pairs:
        """From both ends' pairs after step n to those before it; the rest of the gradient goes to the totals."""
        coupled, (y1, z1, to_y, to_z) = self.coupled, after
        if n in reads.k1:
            leg, t, h = self._place(system, n)
            z1 = z1.requires_grad_()
            to_z = to_z + totals.add([coupled.slope(leg, t, z1, h)], z1, [reads.k1[n]])
        leg, t, h = self._place(system, n)
        y1 = y1.requires_grad_()
        second = coupled.second(leg, t, y1, h).y
        z = (z1 + (second - y1)).detach().requires_grad_()
        to_y = to_y + to_z + totals.add([second], y1, [-to_z])
        leg, t, h = self._place(system, n)
        k0 = leg(t.to(z.dtype.to_real()), z)
        first = coupled.first(leg if n in reads.mid else leg.without_dense(), t, z, h, k0)
        keep = coupled.kept(h, z)
        y = (z + (y1 - first.y) / keep).detach()
        to_z = to_z + totals.add([first.y, k0, first.mid], z, [to_y, reads.k0.get(n), reads.mid.get(n)])
        apart = keep * to_y
        if n in reads.mid:
            apart = apart + (1 + keep) / 2 * reads.mid[n]
        to_y = apart + reads.states[n] if n in reads.states else apart
        return Pairs(y, z.detach(), to_y, to_z - apart)

    def _place(self, system: InitialValue, n: int) -> tuple[InitialValue, Tensor, Tensor]:
        """The system on the segment of step n, t and h, on a graph of their own."""
        place = self.mesh[n]
        leg = system.at(place.segment)
        return leg, *leg.moment(place.theta, place.dtheta)

    def _check(self, y0: Tensor, y: Tensor, z: Tensor, end: Tensor) -> None:
        """Compare the states that the steps led back to with the initial one, relative to the larger end's size."""
        size = torch.maximum(row_norms(y0), row_norms(end))
        off = torch.maximum(row_norms(y - y0), row_norms(z - y0))
        relative = off / size.clamp(min=torch.finfo(size.dtype).tiny)
        worst, row = relative.nan_to_num(nan=math.inf).max(dim=0)
        if worst.item() > digits(y0.dtype):
            raise SolveError(
                f"{len(self.mesh)} steps at coupling {self.coupled.coupling} lead back to y0 with a relative error of "
                f"{worst.item():.1e} in row {row.item()}, more than {digits(y0.dtype):.1e}: "
                f"the solution contracts too much to be taken back in {y0.dtype}, or the field does not repeat its "
                f"values; {CURE}, a coupling nearer 1, or a shorter span"
            )


class Totals:
    """Gradients of the inputs that all steps share, summed up."""

    def __init__(self, inputs: Sequence[Tensor], problem: Problem) -> None:
        self.inputs = inputs
        self.found: list[Tensor | None] = [None] * len(inputs)
        self.origins = Origins(problem)

    def add(self, outputs: Sequence[Tensor | None], state: Tensor, cotangents: Sequence[Tensor | None]) -> Tensor:
        """Add a vector-Jacobian product to the totals; gives back the part of the state."""
        self.origins.see(outputs, [state, *self.inputs])
        part, *rest = replay.grads(outputs, [state, *self.inputs], cotangents)
        self.found = [replay.plus(a, b) for a, b in zip(self.found, rest, strict=True)]
        return torch.zeros_like(state) if part is None else part
