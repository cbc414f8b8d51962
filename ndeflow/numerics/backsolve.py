"""Gradients by solving the adjoint equation backward in time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndeflow.contracts import Problem
from ndeflow.numerics import replay
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.foreign import Foreign
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.norms import row_norms
from ndeflow.numerics.origins import Origins, check_unmoved
from ndeflow.numerics.purity import repeatable
from ndeflow.numerics.segments import Segments, wide
from ndeflow.numerics.solution import Adjoint, Solution, Solver
from ndeflow.numerics.system import InitialValue, System
from ndeflow.numerics.trace import finish, plan, statistics


@final
@dataclass(frozen=True)
class Backsolve(Adjoint):
    """Solves da/dt = -a df/dy backward in time beside the state: constant memory, gradients to tolerance.

    The state is taken anew from the forward solve at every save time. The gradient is that of the exact solution,
    not of the discrete one; the loss may read states and integrals, not error and stiffness. Times, context,
    integrands and rows with their own times are supported; not second derivatives, nor SDEs but through `TorchSDE`:
    solvers of other libraries run their own adjoint.

    seminorm: leave the parameters' and the context's gradients, which nothing feeds on, out of the error norm.
    Kidger, Chen, Lyons 2021, "Hey, that's not an ODE". solver: of the backward solve; None: the forward solver.
    Chen, Rubanova, Bettencourt, Duvenaud 2018, "Neural ordinary differential equations", appendix B.
    """

    seminorm: bool = True
    solver: Marching | None = None

    differentiable_stats: ClassVar[bool] = False

    def __call__(self, solver: Solver, problem: Problem) -> Solution:
        if isinstance(solver, Foreign):
            return solver.integrate_adjoint(problem, self.seminorm)
        if isinstance(problem.field, SDE):
            raise ValueError("expected an ODE for Backsolve, got an SDE; use Checkpointed(), or solver=TorchSDE()")
        if not isinstance(solver, Marching):
            raise ValueError(f"expected RungeKutta or FixedRungeKutta for Backsolve, got {type(solver).__name__}")
        if solver.apart or (self.solver is not None and self.solver.apart):
            raise ValueError(
                "expected rows that step together for Backsolve, got per-sample steps; use batching=shared, or "
                "Direct() or Checkpointed()"
            )
        if any(isinstance(x, (RungeKutta, FixedRungeKutta)) and x.compile == "on" for x in (solver, self.solver)):
            raise ValueError(
                "expected steps that need not be compiled for Backsolve, got compile=on; leave it auto, or use Direct()"
            )
        if any(x is not None and x.masks for x in (solver, self.solver)):
            raise ValueError(
                "expected on_failure=raise for Backsolve, got mask; leave it raise, or use Direct() or Checkpointed()"
            )
        replay.needs_module(problem, "Backsolve")
        system, ambient = solver.system(problem), replay.Ambient.of(problem.y0)
        with torch.no_grad(), ambient(), repeatable(replay.modules(problem), problem.y0.device):
            trace = solver.march(system)
            how = plan(system, trace)
            packed = how.read(how.gather(trace))
            stats = statistics(system, trace, trace.estimates_later())
        sweep = Sweep(self.solver or solver, system, ambient, self.seminorm)
        inputs = [system.times, problem.y0, *replay.conditions(problem), *sweep.parameters]
        stats.backward_nfe = sweep.backward_nfe
        return finish(solver, system, Adjoined.apply(sweep, packed, *inputs), stats)


class Adjoined(torch.autograd.Function):
    """The packed states (B, M, ...) at all times, as a function of times, y0, conditions and parameters."""

    @staticmethod
    def forward(ctx: Any, sweep: Sweep, packed: Tensor, times: Tensor, y0: Tensor, *rest: Tensor) -> Tensor:
        ctx.sweep = sweep
        out = packed.clone()
        ctx.save_for_backward(out, times, y0, *rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        packed, times, y0, *rest = ctx.saved_tensors
        return None, None, *ctx.sweep.run(packed, cotangent, times, y0, rest)


class Sweep:
    """The backward pass: the adjoint equation from save time to save time, cut at knots."""

    def __init__(self, solver: Marching, system: InitialValue, ambient: replay.Ambient, seminorm: bool) -> None:
        self.solver, self.system, self.ambient, self.seminorm = solver, system, ambient, seminorm
        self.parameters = replay.parameters(system.problem)
        self.backward_nfe = [0]

    @torch.no_grad()
    def run(
        self, packed: Tensor, cotangent: Tensor, times: Tensor, y0: Tensor, rest: list[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of (times, y0, *conditions, *parameters)."""
        check_unmoved(self.system.problem, self.parameters)
        conditions = [replay.detached(x) for x in rest[: len(rest) - len(self.parameters)]]
        system = replay.conditioned(self.system, conditions, self.system.segments.edges.detach())
        wanted = [x for x in (*conditions, *self.parameters) if x.requires_grad]
        origins = Origins(system.problem)
        order, crossings = self._crossings(times.detach())
        states, adjoints = _in_order(packed, order), _in_order(cotangent, order)
        a, totals = adjoints[:, -1], [torch.zeros_like(x) for x in wanted]
        for i in reversed(range(states.shape[1] - 1)):
            y = system.state(states[:, i + 1])
            for crossing in crossings.get(i, []):
                equation = AdjointEquation(system, crossing, y, a, wanted, totals, self.seminorm, origins)
                with self.ambient():
                    trace = self.solver.march(equation)
                y, a, totals = equation.unpack(trace.steps[-1].y)
            a = a + adjoints[:, i]
        at_times = self._times(system, packed, cotangent, times, a) if times.requires_grad else None
        self.backward_nfe[0] += system.calls
        origins.check()
        found = iter(totals)
        others = [next(found) if x.requires_grad else None for x in (*conditions, *self.parameters)]
        return at_times, system.state(a), *others

    def _crossings(self, times: Tensor) -> tuple[Tensor, dict[int, list[Crossing]]]:
        """The order of all times along the solve, (M,) or (B, M), and what lies between neighbours, last first."""
        segments = self.system.segments
        edges = segments.edges.detach()
        edges = edges if segments.pieces is not None else edges[[0, -1]]
        sign = -1.0 if bool((edges[-1] < edges[0]).any()) else 1.0
        signed, order = torch.sort(wide(times) * sign, dim=-1, stable=True)
        signed, edges = signed.movedim(-1, 0).unsqueeze(0), (edges * sign).unsqueeze(1)
        if signed.dim() != edges.dim():
            signed, edges = (x if x.dim() == 3 else x.unsqueeze(-1) for x in (signed, edges))
        late = torch.minimum(edges[1:], signed[:, 1:])
        length = (torch.maximum(edges[:-1], signed[:, :-1]) - late).clamp(max=0.0)
        late, length = late * sign, length * sign
        moves = (length != 0).flatten(2).any(dim=2) if length.dim() == 3 else length != 0
        crossings: dict[int, list[Crossing]] = {}
        for segment, i in reversed(moves.nonzero().tolist()):
            piece = None if segments.pieces is None else segments.pieces[segment]
            crossings.setdefault(i, []).append(Crossing(late[segment, i], length[segment, i], piece))
        return order, crossings

    def _times(self, system: InitialValue, packed: Tensor, cotangent: Tensor, times: Tensor, a: Tensor) -> Tensor:
        """dL/dt_j = g_j F(t_j, y_j) at every save time, less a F(t_0, y_0) at the first, where F starts."""
        grad, segments = [], system.places.segment
        for j, t in enumerate(wide(times).movedim(-1, 0)):
            low, high = torch.aminmax(segments[..., j])
            leg = system.at(int(low)) if bool(low == high) else system
            g = cotangent[:, j] if j else cotangent[:, 0] - a
            rate = leg(leg.column(t).to(packed.dtype.to_real()), packed[:, j])
            grad.append((g.conj() * rate).real.flatten(1).sum(dim=1))
        rows = torch.stack(grad, dim=-1).to(times.dtype)
        return rows if times.dim() == 2 else rows.sum(dim=0)


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    """(B, M, ...) with its times in another order, (M,) or (B, M)."""
    if order.dim() == 1:
        return values[:, order]
    return values[torch.arange(len(order), device=order.device).unsqueeze(1), order]


def _as(tensor: Tensor, total: Tensor) -> Tensor:
    """The gradient of a tensor, from its part of a row, which is complex where the state is."""
    return (total if tensor.is_complex() or not total.is_complex() else total.real).view(tensor.shape)


@dataclass(frozen=True)
class Crossing:
    """A stretch without knots, run against the solve: start and length, 0-dim or (B,); the path's piece, if any."""

    start: Tensor
    length: Tensor
    piece: int | None


class AdjointEquation(System):
    """State, adjoint and gradients as one row (1, W), over fractions 0 to 1 of a crossing.

    d/dtheta (y, a, g) = L (f, -a df/dy, -a df/dp), with L each row's own length; a is packed as z is, its integrals'
    part constant and therefore no part of the row.
    """

    def __init__(
        self,
        system: InitialValue,
        crossing: Crossing,
        y: Tensor,
        a: Tensor,
        wanted: list[Tensor],
        totals: list[Tensor],
        seminorm: bool,
        origins: Origins,
    ) -> None:
        super().__init__()
        self.system, self.piece, self.wanted = system, crossing.piece, wanted
        self.start_column, self.length_column = system.column(crossing.start), system.column(crossing.length)
        self.a = a
        self.row = torch.cat([y.flatten(), system.state(a).flatten(), *(x.flatten() for x in totals)]).unsqueeze(0)
        self.sizes = [y.numel(), y.numel(), *(x.numel() for x in totals)]
        self.seminorm = seminorm
        edges = torch.arange(2, dtype=crossing.start.dtype, device=y.device)
        self.segments, self.dense, self.rows = Segments(edges), False, 1
        self.origins = origins

    def open(self) -> tuple[Tensor, Tensor]:
        return self.row, self.at(0).slope(self.row)

    def at(self, segment: int) -> Self:
        self.segment, (self.start, end) = segment, self.segments.edges.unbind()
        self.length = end - self.start
        return self

    def column(self, x: Tensor) -> Tensor:
        return x  # the one row's times are common

    def judged(self, z: Tensor) -> Tensor:
        return z[:, : sum(self.sizes[:2])] if self.seminorm else z

    def measured(self, scaled: Tensor) -> Tensor:
        """The largest of the root mean squares of state and adjoint and of each gradient: (1, 1)."""
        parts = scaled.split([sum(self.sizes[:2]), *([] if self.seminorm else self.sizes[2:])], dim=1)
        mean = [row_norms(part) * math.sqrt(scaled.numel() / part.numel()) for part in parts if part.numel()]
        return torch.stack(mean, dim=1).amax(dim=1, keepdim=True)

    def row_moment(self, theta: float, dtheta: float, row: int) -> tuple[float, float]:
        start, length = self.start_column.flatten()[0].item(), self.length_column.flatten()[0].item()
        return start + theta * length, dtheta * length

    def unpack(self, row: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The state (B, *state), the adjoint as z is packed, and the gradients."""
        y, a, *totals = row[0].split(self.sizes)
        shape = self.system.problem.y0.shape
        adjoint = self.system.join(a.view(shape), self.system.integrals(self.a))
        return y.view(shape), adjoint, [_as(w, x) for x, w in zip(totals, self.wanted, strict=True)]

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        y, a, _ = self.unpack(z)
        real = y.dtype.to_real()
        length = self.length_column.to(real)
        now = (self.start_column + t * self.length_column).to(real)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            leg = self.system if self.piece is None else self.system.on_piece(self.piece)
            rate = leg(now, leg.join(y, None))
        self.origins.see([rate], [y, *self.wanted])
        found = replay.grads([rate], [y, *self.wanted], [a * length])
        slopes = [torch.zeros_like(x) if g is None else g for x, g in zip([y, *self.wanted], found, strict=True)]
        dy = leg.state(rate.detach() * length)
        return torch.cat([dy.flatten(), *(-g.flatten() for g in slopes)]).unsqueeze(0)
