"""What a marching solver crosses: a right-hand side over segments, with integrals packed beside the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.derivatives import Evaluation, JacobianIntegrand, recorded
from ndeflow.numerics.field import SDE, conditions, continuous, rebuilt, with_piece
from ndeflow.numerics.purity import versions
from ndeflow.numerics.segments import Places, Segments, Spots

if TYPE_CHECKING:
    from ndeflow.numerics.stepper import Stepper


class System(ABC):
    """dz/dt = F(t, z) over segments; z is (B, *state), or (B, D + K) with K integrals beside D state columns.

    `legs` gives, segment by segment, a copy that is set on it: F with the control path's piece, the segment's
    start and length as columns that broadcast against z. Evaluations of all copies are counted together. engine: what
    a march is to compute its steps with, None: the solver itself; legs have none, for an engine may keep the last one.
    """

    segments: Segments
    dense: bool
    segment: int
    start: Tensor
    length: Tensor
    rows: int
    moving: int
    engine: Stepper | None = None

    def __init__(self) -> None:
        self._calls = [0]
        self._parts: list[tuple[Tensor, list[int]]] = []

    @abstractmethod
    def open(self) -> tuple[Tensor, Tensor]:
        """The packed state at the start and dz/dt there: the first evaluation of a solve."""

    @abstractmethod
    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at t (0-dim or (B, 1, ..., 1), in the state's real dtype) and z; one evaluation."""

    @abstractmethod
    def judged(self, z: Tensor) -> Tensor:
        """The part of a packed tensor that the error norm sees."""

    def beside(self, z: Tensor) -> Tensor | None:
        """The integrals (B, K) within a packed tensor, which the error norm does not see; None: there are none."""
        return None

    def measured(self, scaled: Tensor) -> Tensor:
        """What each row is judged by, as its Euclidean norm: (B, ...), of an error as `Adaptive.scaled` scales it."""
        return scaled

    @abstractmethod
    def at(self, segment: int) -> Self:
        """A copy set on a segment."""

    @abstractmethod
    def column(self, x: Tensor) -> Tensor:
        """A time 0-dim as it is, (B,) as a column that broadcasts against z."""

    def copied(self) -> Self:
        """A copy, as `copy.copy` makes it, in a tenth of the time."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    @property
    def compiled(self) -> bool:
        """Whether the steps of its march are not recorded, but taken again in the backward pass."""
        return self.engine is not None and self.engine.compiled

    @property
    def renewed(self) -> bool:
        """Whether the right-hand side may jump where this segment begins, so that no slope outlives that knot."""
        return self.segments.pieces is not None

    @property
    def calls(self) -> int:
        """Evaluations so far, those of some rows only included."""
        return self._calls[0] + sum(calls[0] for _, calls in self._parts)

    def evaluations(self) -> Tensor:
        """In how many evaluations each row was computed: (B,) int64."""
        device = self.segments.edges.device
        total = torch.full((self.rows,), self._calls[0], device=device)
        for rows, calls in self._parts:
            total.index_add_(0, rows, torch.full_like(rows, calls[0]))
        return total

    def count(self, evaluations: int) -> None:
        """Add evaluations that were made by other means than calling this."""
        self._calls[0] += evaluations

    def legs(self) -> Iterator[Self]:
        """The system on each segment in which a row moves."""
        for segment, moving in enumerate(self.segments.moving):
            if moving:
                leg = self.at(segment)
                leg.moving = moving if self.segments.edges.dim() == 2 else self.rows
                yield leg

    def slope(self, z: Tensor) -> Tensor:
        """dz/dt at the start of this segment; one evaluation."""
        return self(self.start.to(z.dtype.to_real()), z)

    def moment(self, theta: Any, dtheta: Any) -> tuple[Tensor, Tensor]:
        """t and h of a step that starts at the fraction theta of this segment and covers dtheta of it.

        Both numbers, or (B,), of each row.
        """
        start, numbers = self.start, self.segments.numbers
        if isinstance(theta, Tensor):
            theta, dtheta = self.column(theta), self.column(dtheta)
            return torch.addcmul(start, self.length, theta), self.length * dtheta
        if numbers is None:
            return start if theta == 0 else start.add(self.length, alpha=theta), self.length * dtheta
        low = numbers[self.segment]
        length = numbers[self.segment + 1] - low
        h = start.new_full((), length * dtheta)
        return (start, h) if theta == 0 else (start.new_full((), low + theta * length), h)

    def mean_length(self) -> float:
        """The mean length of the moving rows' segment."""
        if self.segments.numbers is not None:
            return abs(self.segments.numbers[self.segment + 1] - self.segments.numbers[self.segment])
        length = self.length.detach().abs()
        return length.sum().item() / (self.moving if length.dim() else 1)

    def resolution(self) -> Tensor:
        """The smallest fraction of this segment that times can tell apart, times 16: 0-dim or (B,), of each row."""
        start, length = self.start.detach().flatten(), self.length.detach().flatten()
        reach = torch.maximum(start.abs(), (start + length).abs()) / length.abs()
        reach = torch.where(length != 0, reach, 1.0).clamp(min=1.0)
        return 16 * torch.finfo(start.dtype).eps * reach.view(-1 if self.length.dim() else ())

    def row_moment(self, theta: float, dtheta: float, row: int) -> tuple[float, float]:
        """t and h of one row, as numbers, for a message."""
        t, h = (x.detach().flatten() for x in self.moment(theta, dtheta))
        return t[row % len(t)].item(), h[row % len(h)].item()


class InitialValue(System):
    """A problem as a system: its field (of an SDE the drift), and its integrands beside the state.

    segments None: for a single step of the state alone, outside any march. continuous: at the knots of the control
    path, for a row that moves on both sides of them.
    """

    def __init__(self, problem: Problem, segments: Segments | None) -> None:
        super().__init__()
        self.problem = problem
        self.context = problem.context
        self.integrands = problem.integrands
        self.recorded = any([isinstance(module, JacobianIntegrand) for module, _ in problem.integrands])
        self.rhs = problem.field.drift if isinstance(problem.field, SDE) else problem.field
        shape = problem.y0.shape
        self.rows, self.shape = shape[0], shape[1:]
        self.width = self.shape.numel()
        self.columns = 0
        self.dense = True
        self.continuous = not problem.integrands and continuous(problem.field, problem.context)
        self.spots: Spots | None = None
        if segments is not None:
            self.segments = segments
            self.times = problem.ts if problem.probes is None else torch.cat([problem.ts, problem.probes], dim=-1)
            self.spots = segments.spots(problem.clock)
            interior = self.places.interior if self.spots is None else self.spots.interior
            self.dense = interior or (self.times.requires_grad and self.times.shape[-1] > 2)

    @property
    def renewed(self) -> bool:
        return super().renewed and not (self.continuous and self.segments.departing[self.segment] == 0)

    @cached_property
    def places(self) -> Places:
        """Where the times lie, as tensors."""
        if self.spots is None:
            return self.segments.locate(self.times)
        segment, theta = (torch.tensor(x, device=self.times.device) for x in self.spots[:2])
        return Places(segment, theta.to(self.segments.edges.dtype), self.spots.interior)

    def conditions(self) -> list[Tensor]:
        """The leaves of the context and of the integrands' own contexts, in order."""
        return conditions(self.context, self.integrands)

    def example(self) -> list[Tensor]:
        """The leaves that a leg has, however many knots there are; they need gradients as if all were recorded."""
        if self.segments.pieces is None:
            return self.conditions()
        with torch.enable_grad():
            return self.at(self.segments.first).conditions()

    def with_conditions(self, new: Sequence[Tensor]) -> Self:
        """The same system, its evaluations counted anew, reading other leaves."""
        other, rest = self.copied(), iter(new)
        other._calls, other._parts = [0], []
        other.context = rebuilt(self.context, rest)
        if self.integrands:
            other.integrands = tuple([(module, rebuilt(own, rest)) for module, own in self.integrands])
        return other

    def with_edges(self, edges: Tensor) -> Self:
        """The same system on segments with other edges."""
        other = self.copied()
        other.segments = Segments(edges, self.segments.pieces)
        return other

    def at(self, segment: int) -> Self:
        leg = self.copied() if self.segments.pieces is None else self.on_piece(self.segments.pieces[segment])
        start, length = self.segments.bounds(segment)
        leg.segment, leg.engine, leg.start, leg.length = segment, None, self.column(start), self.column(length)
        return leg

    def of(self, rows: Tensor) -> Self:
        """A copy of some rows (L,) alone, on the same segment; its evaluations are counted as theirs."""
        part = self.with_conditions([leaf[rows] for leaf in self.conditions()])
        part._parts = self._parts
        self._parts.append((rows, part._calls))
        part.start, part.length = (x[rows] if x.dim() else x for x in (self.start, self.length))
        part.rows = part.moving = len(rows)
        return part

    def on_piece(self, piece: int) -> Self:
        """A copy that sees one piece of the control path."""
        leg = self.copied()
        leg.context = with_piece(self.context, piece)
        return leg

    def without_dense(self) -> Self:
        """A copy whose steps are not interpolated."""
        if not self.dense:
            return self
        leg = self.copied()
        leg.dense = False
        return leg

    def alone(self) -> Self:
        """A copy of the state without integrals beside it, whose times are constants and steps not interpolated."""
        other = self.copied()
        other.integrands, other.columns, other.dense, other._calls = (), 0, False, [0]
        if self.segments.edges.requires_grad:
            other.segments = replace(self.segments, edges=self.segments.edges.detach())
        return other

    def open(self) -> tuple[Tensor, Tensor]:
        y0 = self.problem.y0
        leg = self.at(self.segments.first)
        t = leg.start.to(y0.dtype.to_real())
        given = [y0, t, *leg.conditions()]
        before = versions(given)
        evaluated = leg._evaluated(t, y0.view_as(y0) if self.recorded else y0)  # whose Jacobian is at this y0 alone
        if versions(given) != before:
            raise ValueError(
                "expected a field that leaves its arguments as they are, got one that writes into them; "
                "write into a copy, such as y.clone()"
            )
        self._check(*evaluated)
        dy, dq = self._beside(y0, *evaluated)
        self.columns = 0 if dq is None else dq.shape[1]
        zeros = y0.new_zeros(self.rows, self.columns)
        return self.join(y0, zeros), self.join(dy, dq)

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        if self.columns == 0:
            return self._rates(t, z)[0]
        return self.join(*self._rates(self._beside_state(t), self.state(z)))

    def diffusion(self, t: Tensor, z: Tensor) -> Tensor:
        """An SDE's diffusion at the state within z."""
        return self.problem.field.diffusion(self._beside_state(t), self.state(z), *self._arguments())

    def judged(self, z: Tensor) -> Tensor:
        return z[:, : self.width] if self.columns else z

    def beside(self, z: Tensor) -> Tensor | None:
        return z[:, self.width :] if self.columns else None

    def state(self, z: Tensor) -> Tensor:
        """The state (B, *state) within a packed tensor (..., B, D + K)."""
        return z[..., : self.width].reshape(*z.shape[:-1], *self.shape) if self.columns else z

    def integrals(self, z: Tensor) -> Tensor:
        """The integrals (..., K) within a packed tensor."""
        return z[..., self.width :] if self.columns else z.new_zeros(*z.shape[: z.dim() - len(self.shape)], 0)

    def join(self, y: Tensor, q: Tensor | None) -> Tensor:
        """Pack a state, or its rate of change, beside integrals (B, K); None: zeros."""
        if self.columns == 0:
            return y
        q = y.new_zeros(self.rows, self.columns) if q is None else q
        return torch.cat([y.reshape(self.rows, self.width), q], dim=1)

    def _rates(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._beside(y, *self._evaluated(t, y))

    def _evaluated(self, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """dy/dt, and the integrals' rates: (B, K) that a field gives itself, then (B,) of each integrand."""
        self._calls[0] += 1
        if self.recorded:
            y, dy = recorded(lambda z: self.rhs(t, z, *self._arguments()), y)
        else:
            dy = self.rhs(t, y, *self._arguments())
        dy, *rates = dy if isinstance(dy, tuple) else (dy,)
        if self.integrands:
            at = Evaluation(self.problem.field, t, y, dy, self.context)
            rates += [module(at, own) for module, own in self.integrands]
        return dy, rates

    def _beside(self, y: Tensor, dy: Tensor, rates: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """dy/dt as y is, and all integrals' rates (B, K) in one tensor; None: there are none."""
        if dy.dtype != y.dtype:
            dy = dy.to(y.dtype)
        if not rates:
            return dy, None
        return dy, torch.cat([q.reshape(self.rows, -1) for q in rates], dim=1).to(y.dtype)

    def _arguments(self) -> tuple[Any, ...]:
        return () if self.context is None else (self.context,)

    def _beside_state(self, t: Tensor) -> Tensor:
        """Time that broadcasts against z, reshaped to broadcast against the state."""
        return _column(t.flatten(), 1 + len(self.shape)) if self.columns and t.dim() else t

    def column(self, x: Tensor) -> Tensor:
        return _column(x, 2 if self.columns else 1 + len(self.shape)) if x.dim() else x

    def _check(self, dy: Any, rates: list[Any]) -> None:
        y0, kinds = self.problem.y0, [type(x).__name__ for x in (dy, *rates)]
        if not all(isinstance(x, Tensor) for x in (dy, *rates)):
            raise ValueError(
                f"expected tensors from the field and the integrands, got {', '.join(kinds)}; return dy/dt, or (dy, dq)"
            )
        if dy.shape != y0.shape:
            raise ValueError(
                f"expected the field to return the shape of the state {tuple(y0.shape)}, "
                f"got {tuple(dy.shape)}; return dy/dt for each element of y"
            )
        if dy.is_complex() and not y0.is_complex():
            raise ValueError("expected a real rate of a real state, got a complex one; make y0 complex")
        dims = [2] * (len(rates) - len(self.integrands)) + [1] * len(self.integrands)
        if dims.count(2) > 1 or any(q.dim() != n or len(q) != self.rows for q, n in zip(rates, dims, strict=True)):
            raise ValueError(
                f"expected integrals' rates ({self.rows}, K) from a field and ({self.rows},) from an integrand, got "
                f"{', '.join(str(tuple(q.shape)) for q in rates)}; return (dy, dq) with dq (B, K) from a field, "
                "(B,) from an integrand"
            )
        if rates and y0.is_complex():
            raise ValueError("expected a real state beside integrals, got a complex one; use view_as_real")


def _column(x: Tensor, dims: int) -> Tensor:
    """(B,) as (B, 1, ..., 1)."""
    return x.view(-1, *[1] * (dims - 1))
