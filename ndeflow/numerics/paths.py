"""Control paths: functions of time through irregular, partly missing observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from ndeflow.numerics.observations import filled


class ControlPath(ABC):
    """A function of time X with C channels for each of B rows, smooth between its knots.

    knots: (K,), or (B, K) where rows have their own; nondecreasing. An interval of length zero (padding) is passed
    over: X is constant there. Before the first knot and after the last the outermost intervals are continued.

    smoothness: how often X can be differentiated at a knot between two other intervals; -1: it may jump.
    """

    smoothness: ClassVar[int] = -1
    knots: Tensor

    def at_observations(self) -> Tensor:
        """The times of the path, (T,) or (B, T), at which the T observations have been read: by default the knots."""
        return self.knots

    def check_times(self, ts: Tensor) -> None:  # noqa: B027
        """Raise ValueError for save times (T',) or (B, T') that mean nothing on this path; by default all are right."""

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """X(t), (B, C), at t: 0-dim or (B, 1, ..., 1). At a knot: as seen from before it."""

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """dX/dt, (B, C), at t: 0-dim or (B, 1, ..., 1). At a knot: as seen from before it."""

    @abstractmethod
    def piece(self, k: int) -> ControlPath:
        """The path between its knots k and k + 1 alone, which sees both ends from inside."""

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """All tensors the path is made of, each with leading dimension B; shared knots are expanded."""

    @abstractmethod
    def rebuild(self, leaves: Iterator[Tensor]) -> Self:
        """The same kind of path made of other tensors, taken from `leaves` in the order of `self.leaves()`."""


class Polynomial(ControlPath):
    """X(t) = sum_j c_j (t - t_k)^j between knots; what `Piece` and `Piecewise` share."""

    def __init__(self, knots: Tensor, coefficients: Sequence[Tensor]) -> None:
        self.knots, self.coefficients = knots, tuple(coefficients)

    def leaves(self) -> list[Tensor]:
        return [self.knots.expand(len(self.coefficients[0]), -1), *self.coefficients]

    def rebuild(self, leaves: Iterator[Tensor]) -> Self:
        return type(self)(next(leaves), [next(leaves) for _ in self.coefficients])


@final
class Piece(Polynomial):
    """One polynomial a row. knots: (2,) or (B, 2); coefficients: each (B, C), lowest power first."""

    def value(self, t: Tensor) -> Tensor:
        s = self._since_start(t)
        x = self.coefficients[-1]
        for c in self.coefficients[-2::-1]:
            x = torch.addcmul(c, x, s)
        return x

    def derivative(self, t: Tensor) -> Tensor:
        degree = len(self.coefficients) - 1
        if degree == 1:
            return self.coefficients[1]
        s = self._since_start(t)
        slope = self.coefficients[degree] * degree
        for j in range(degree - 1, 0, -1):
            slope = torch.add(slope * s, self.coefficients[j], alpha=j)
        return slope

    def piece(self, k: int) -> ControlPath:
        if k != 0:
            raise IndexError(f"expected piece 0 of a path with one piece, got {k}")
        return self

    def _since_start(self, t: Tensor) -> Tensor:
        return (_column(t) - self.knots[..., :1]).to(self.coefficients[0].dtype)


class Piecewise(Polynomial):
    """A polynomial for each interval. knots: (K,) or (B, K); coefficients: each (B, K - 1, C), lowest power first."""

    def value(self, t: Tensor) -> Tensor:
        return self.around(t).value(t)

    def derivative(self, t: Tensor) -> Tensor:
        return self.around(t).derivative(t)

    def piece(self, k: int) -> Piece:
        return Piece(self.knots[..., k : k + 2], [c[:, k] for c in self.coefficients])

    def around(self, t: Tensor) -> Piece:
        """Each row's piece that contains t; a knot belongs to the piece that ends there."""
        rows, _, channels = self.coefficients[0].shape
        knots = self.knots.expand(rows, -1)
        times = _column(t).to(knots.dtype).expand(rows, 1)
        index = torch.searchsorted(knots[:, 1:-1].detach().contiguous(), times.detach().contiguous())
        where = index.unsqueeze(-1).expand(-1, -1, channels)
        ends = knots.gather(1, torch.cat([index, index + 1], dim=1))
        return Piece(ends, [c.gather(1, where).squeeze(1) for c in self.coefficients])


Interpolation = Callable[[Tensor, Tensor, Tensor], ControlPath]  # (ts, xs, mask), such as `Linear.through`


@final
class Linear(Piecewise):
    """Straight lines from observation to observation; dX/dt jumps at the knots."""

    smoothness = 0

    @classmethod
    def through(cls, ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> Linear:
        """The path through xs (B, T, C) at ts: (T,) or (B, T), nondecreasing, T at least 2.

        mask: (B, T, C) bool, observed; None: wherever xs is not NaN. Missing values are filled in by `filled`.
        Between its observations a channel looks ahead to the next of them, never further. Raises ValueError for
        shapes that do not fit and for decreasing times.
        """
        xs = filled(ts, xs, mask)
        return cls(ts, by_piece(xs[:, :-1], _slopes(ts, xs)))


@final
class Hermite(Piecewise):
    """Cubics with backward differences: continuously differentiable, looking ahead no further than lines do.

    With D = t_{k+1} - t_k, s = t - t_k, the slope m = (x_{k+1} - x_k) / D and p that of the interval before,
    X(t) = x_k + p s + 2 (m - p) s^2 / D - (m - p) s^3 / D^2, so that X' = p at the start and m at the end. The
    first interval, and one after an interval of length zero, has p = m: a line. Morrill, Kidger, Yang, Lyons 2021,
    "Neural controlled differential equations for online prediction tasks".
    """

    smoothness = 1

    @classmethod
    def through(cls, ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> Hermite:
        """The path through xs (B, T, C) at ts; arguments, missing values and errors as in `Linear.through`."""
        xs = filled(ts, xs, mask)
        width, still = _widths(ts, xs)
        end = _slopes(ts, xs)
        start = torch.cat([end[:, :1], torch.where(still[..., :-1, :], end[:, 1:], end[:, :-1])], dim=1)
        bend = torch.where(still, 0.0, end - start) / width
        return cls(ts, by_piece(xs[:, :-1], torch.where(still, 0.0, start), 2 * bend, -bend / width))


def by_piece(*coefficients: Tensor) -> list[Tensor]:
    """Coefficients (B, K - 1, C) that lie in memory piece by piece, so that none is copied when a solve asks for it."""
    return [c.transpose(0, 1).contiguous().transpose(0, 1) for c in coefficients]


def _widths(ts: Tensor, xs: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the intervals, 1 in place of 0, and which have length zero: (T - 1, 1) or (B, T - 1, 1)."""
    width = ts.diff(dim=-1).unsqueeze(-1)
    still = width == 0
    return torch.where(still, 1.0, width).to(xs.dtype), still


def _slopes(ts: Tensor, xs: Tensor) -> Tensor:
    """(x_{k+1} - x_k) / (t_{k+1} - t_k), (B, T - 1, C); 0 in intervals of length zero."""
    width, still = _widths(ts, xs)
    return torch.where(still, 0.0, xs.diff(dim=1)) / width


def _column(t: Tensor) -> Tensor:
    """A 0-dim time as it is, (B, 1, ..., 1) as (B, 1)."""
    return t.reshape(-1, 1) if t.dim() else t
