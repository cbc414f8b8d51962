"""Where the span of a solve is cut: the segments that all rows cross together by common fractions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.field import path_of

SLACK = 1e-9
OUTSIDE = "expected probes within the span of ts, got one outside; clamp the probes to the span"


class Places(NamedTuple):
    """Where M times lie: segment (M,) or (B, M) int64, and theta, the fraction of it, on the graph of the times.

    interior: whether states must be interpolated to read them, rather than taken at ends of segments.
    """

    segment: Tensor
    theta: Tensor
    interior: bool


class Spots(NamedTuple):
    """As `Places`, of times that are plain numbers: segment (M,) int64 and theta (M,).

    edges: the nearest edge before or at each time.
    """

    segment: np.ndarray
    theta: np.ndarray
    interior: bool
    edges: list[int]


@dataclass(frozen=True)
class Segments:
    """S segments, crossed in the order of their edges.

    edges: (S + 1,), or (S + 1, B) where rows have their own times, in float64 where the device has it; on the
    autograd graph if the times are. A row whose two edges are equal stands still. pieces: for each segment the
    number of the control path's piece, or None where there is no path. numbers: the edges as plain numbers, where all
    rows share them and they are known.
    """

    edges: Tensor
    pieces: tuple[int, ...] | None = None
    numbers: tuple[float, ...] | None = None

    @property
    def moving(self) -> list[int]:
        """How many rows move, for each segment (with common times 1: all)."""
        return self._motion[0]

    @property
    def departing(self) -> list[int]:
        """How many of them stood still in the segment before, for each segment; of the first all."""
        return self._motion[1]

    @cached_property
    def _motion(self) -> tuple[list[int], list[int]]:
        """Read from the device once."""
        if self.numbers is not None:
            moves = [int(a != b) for a, b in pairwise(self.numbers)]
            return moves, [int(now > before) for before, now in pairwise([0, *moves])]
        moves = self.edges.detach().diff(dim=0) != 0
        departs = torch.cat([moves[:1], moves[1:] & ~moves[:-1]])
        found = torch.stack([moves, departs])
        moving, departing = (found.sum(dim=2) if found.dim() == 3 else found.int()).tolist()
        return moving, departing

    @property
    def first(self) -> int:
        """The first segment in which a row moves; 0 if there is none."""
        return next((k for k, moving in enumerate(self.moving) if moving), 0)

    def spots(self, clock: tuple[float, ...] | None) -> Spots | None:
        """As `locate`, of times as plain numbers; None where they, or the edges, are not known."""
        return None if clock is None or self.numbers is None else _spots(self.numbers, clock)

    def bounds(self, segment: int) -> tuple[Tensor, Tensor]:
        """The start of a segment and its length, 0-dim or (B,)."""
        if self.numbers is None:
            return self.edges[segment], self.edges[segment + 1] - self.edges[segment]
        return self._bounds[segment]

    @cached_property
    def _bounds(self) -> list[tuple[Tensor, Tensor]]:
        """Of all segments with edges that are known as numbers, and so on no graph."""
        return list(zip(self.edges[:-1].unbind(), self.edges.diff(dim=0).unbind(), strict=True))

    def locate(self, times: Tensor) -> Places:
        """The places of times (M,) or (B, M); a time at an edge belongs to the segment that ends there.

        Raises ValueError for a time outside the span.
        """
        edges = self.edges if self.edges.dim() == 1 else self.edges.T
        if edges.dim() == 2 and times.dim() == 1:
            times = times.expand(len(edges), -1)
        times = times.to(edges.dtype)
        segment = self._segment(edges.detach(), times.detach())
        start, end = edges.gather(-1, segment), edges.gather(-1, segment + 1)
        still = start == end
        theta = torch.where(still, 0.0, (times - start) / torch.where(still, 1.0, end - start))
        value = theta.detach()
        inside = ((value > 0) & (value < 1)).any()
        within = (value >= -SLACK) & (value <= 1 + SLACK) & (~still | (times.detach() == start.detach()))
        inside, within = torch.stack([inside, within.all()]).tolist()
        if not within:
            raise ValueError(OUTSIDE)
        return Places(segment, theta, inside)

    @staticmethod
    def _segment(edges: Tensor, times: Tensor) -> Tensor:
        inner = edges[..., 1:-1]
        if inner.shape[-1] == 0:
            return torch.zeros(times.shape, dtype=torch.int64, device=times.device)
        backward = bool((edges[..., -1] < edges[..., 0]).any())
        inner, times = (-inner, -times) if backward else (inner, times)
        return torch.searchsorted(inner.contiguous(), times.contiguous())


def wide(x: Tensor) -> Tensor:
    """In float64 where the device has it, else float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def adaptive_segments(problem: Problem) -> Segments:
    """One segment, or the pieces of the control path clipped to the span."""
    path, clock = path_of(problem.context), problem.clock
    if path is None and clock is not None:
        return _numbered((clock[0], clock[problem.ts.shape[0] - 1]), problem.ts.device)
    ts = wide(problem.ts)
    if path is None:
        return Segments(torch.stack([ts[..., 0], ts[..., -1]]))
    return _pieces(ts[..., 0], ts[..., -1], wide(path.knots))


def fixed_segments(problem: Problem) -> Segments:
    """The save intervals, or the pieces of the control path; then raises ValueError for a save time between knots."""
    if path_of(problem.context) is None:
        if problem.clock is not None:
            return _numbered(
                problem.clock[: len(problem.ts)] if len(problem.ts) > 1 else problem.clock[:1] * 2, problem.ts.device
            )
        ts = wide(problem.ts).clone().movedim(-1, 0)  # which the caller may write to
        return Segments(ts if len(ts) > 1 else torch.cat([ts, ts]))
    segments = adaptive_segments(problem)
    if segments.locate(problem.ts.detach()).interior:
        cure = "" if problem.noise is not None else ", or use an adaptive solver such as RungeKutta()"
        raise ValueError(
            f"expected save times that are knots of the control path, got one between knots; save at knots only{cure}"
        )
    return segments


@lru_cache(maxsize=32)
def _numbered(edges: tuple[float, ...], device: torch.device) -> Segments:
    """Segments with edges that are plain numbers; kept, for training solves the same span again and again."""
    with torch.inference_mode(False):
        return Segments(wide(torch.tensor(edges, dtype=torch.float64)).to(device), None, edges)


@lru_cache(maxsize=32)
def _spots(numbers: tuple[float, ...], clock: tuple[float, ...]) -> Spots:
    edges, times = np.array(numbers), np.array(clock)
    sign = -1.0 if edges[-1] < edges[0] else 1.0
    segment = np.searchsorted(sign * edges[1:-1], sign * times)
    start, end = edges[segment], edges[segment + 1]
    still = start == end
    theta = np.where(still, 0.0, (times - start) / np.where(still, 1.0, end - start))
    if not ((theta >= -SLACK) & (theta <= 1 + SLACK) & (~still | (times == start))).all():
        raise ValueError(OUTSIDE)
    interior = bool(((theta > 0) & (theta < 1)).any())
    return Spots(segment, theta.clip(0, 1), interior, (segment + theta).astype(int).tolist())


def _pieces(first: Tensor, last: Tensor, knots: Tensor) -> Segments:
    """The pieces of a path with knots (K,) or (B, K), crossed from `first` to `last`: 0-dim or (B,)."""
    inner = knots.movedim(-1, 0)[1:-1]
    if first.dim() > inner.dim() - 1:  # rows with their own times on knots that they share
        inner = inner.unsqueeze(1)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    inner = torch.where(inner <= low, low, torch.where(inner >= high, high, inner))
    order = list(range(len(inner) + 1))
    if bool((last < first).any()):
        inner, order = inner.flip(0), order[::-1]
    shape = torch.broadcast_shapes(inner.shape[1:], first.shape)
    edges = torch.cat([first.expand(1, *shape), inner.expand(len(inner), *shape), last.expand(1, *shape)])
    shared = edges.dim() == 1 and not edges.requires_grad
    return Segments(edges, tuple(order), tuple(edges.tolist()) if shared else None)
