"""A virtual dyadic tree of Brownian motion: increments and areas over any interval, in any order, nothing stored.

Over an interval [s, t] of length h, a Brownian motion has an increment W and, independent of it, a space-time Levy area
H = (1 / h) int (W(s, r) - (r - s) / h W) dr ~ N(0, h / 12). The tree's root is the unit interval; the node at level j
and place p is [p, p + 1] / 2^j, of length h. Given its W and H, its halves on the left (+) and on the right (-) have,
with two standard normals X1 and X2 of the node's own,

    W' = W / 2 +- (3 H / 2 + sqrt(h) X1 / 4)        H' = H / 4 - sqrt(h) X1 / 8 +- sqrt(h / 48) X2.

So white noise is a series in piecewise linear functions, each on one node and orthogonal to lines there. W over an
interval is the sum of all normals times the integrals of their functions over it, which are 0 but for the nodes that
one of its ends cuts: two a level. With y in [0, 1] the place within a half, the integrals from a node's start are

    X1: sqrt(h) / 4 (3 y^2 - 2 y), then sqrt(h) / 4 (3 y^2 - 4 y + 1)        X2: +- sqrt(3 h) / 2 (y - y^2).

H is such a sum too. Neighbours of lengths l and r are joined by

    W = W_l + W_r        h H = l H_l + r H_r + (r W_l - l W_r) / 2.

The halves: Foster, Lyons and Oberhauser 2020, An optimal polynomial approximation of Brownian motion, SIAM J. Numer.
Anal. 58(3); Jelincic, Foster and Kidger 2024, Single-seed generation of Brownian paths and integrals for adaptive and
high order SDE solvers, arXiv 2405.06464. The functions: Alpert 1993, A class of bases in L2 for the sparse
representation of integral operators, SIAM J. Math. Anal. 24(1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from ndeflow.numerics.brownian import WORD, Brownian, row_normals

DEPTH = 24
DEEPEST = 32
LEVEL = 26  # bits of a counter's first word under the level: room for 2^26 times four normals


class Increment(NamedTuple):
    """A Brownian motion over an interval. w: its increment. h: its space-time Levy area. Both (B, size)."""

    w: Tensor
    h: Tensor


def increment(
    key: Sequence[Any],
    index: Tensor,
    start: Tensor,
    stop: Tensor,
    size: int,
    dtype: torch.dtype,
    depth: int = DEPTH,
) -> Increment:
    """W and H of unit-interval Brownian motions over [start, stop] / 2^depth; a pure function of tensors.

    key: two words, as `Brownian.branch` gives them. index: (B,) int64, of the rows, as `Brownian.rows` gives it. start,
    stop: int64, 0-dim or (B,), 0 <= start <= stop <= 2^depth, not checked. depth: 1 to 32. Over a root interval of
    length T both are sqrt(T) times as large.

    A node's numbers do not depend on the depth: where both ends are even, half of them and a depth less by 1 give the
    same to rounding. The cost is that of 2 depth + 2 nodes, of two normals a channel, whatever the interval. Made in
    float32, in float64 if `dtype` is. Joined intervals agree with the whole to rounding of the increments themselves.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    start, stop = (end.view(-1, 1) for end in torch.broadcast_tensors(start, stop))
    levels = torch.arange(depth + 1, device=index.device).view(-1, 1, 1)
    places = torch.stack([start, stop]).unsqueeze(1) >> depth + 1 - levels
    normals = row_normals(key, index, levels << LEVEL, places & WORD, 2 * size, wide).unflatten(-1, (size, 2))
    x1, x2 = normals.unbind(-1)
    at_root, at_start, at_stop = _root(start, stop, depth, wide), *_nodes(start, stop, places[:, 1:], depth, wide)
    apart = places[0, 1:] != places[1, 1:]
    first = torch.cat([at_root, at_start], dim=2)
    second = torch.cat([torch.zeros_like(at_root), at_stop * apart], dim=2)  # nodes of both ends count once
    parts = first[:, 0] * x1[0] + first[:, 1] * x2[0] + second[:, 0] * x1[1] + second[:, 1] * x2[1]
    w, h = reduce(torch.add, parts.unbind(1)).to(dtype)  # unlike sum, in the same order whatever the shape
    return Increment(w, h)


def node_normals(
    key: Sequence[Any], index: Tensor, word: Tensor, place: Tensor, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """X1 and X2 of a node, (B, size) each, or of the root, W and sqrt(12) H; a pure function of tensors.

    word: (j + 1) 2^26 of a node at level j, 0 of the root. place: the node's, 0 of the root. Both int64, 0-dim or (B,).
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    normals = row_normals(key, index, word.view(-1, 1), place.view(-1, 1) & WORD, 2 * size, wide)
    x1, x2 = normals.to(dtype).unflatten(-1, (size, 2)).unbind(-1)
    return x1, x2


def _root(start: Tensor, stop: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
    """What W and H have of the root's normals, which are its own W and sqrt(12) H: (2, 2, 1, B, 1)."""
    length, twice = (x.to(dtype) * 0.5**depth for x in (stop - start, start + stop))
    w = torch.stack([length, math.sqrt(3) * length * (1.0 - twice)])
    h = torch.stack([torch.zeros_like(length), math.sqrt(1 / 12) * length.square()])
    return torch.stack([w, h]).unsqueeze(2)


def _nodes(start: Tensor, stop: Tensor, places: Tensor, depth: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """What W and H have of the normals X1 and X2 of the nodes about the start, and about the stop: (2, 2, depth, B, 1).

    places: (2, depth, B, 1), of these nodes on each level. Where the interval covers the part [a, b] of a half, with
    Psi the integral there, w = Psi(b) - Psi(a) and, Psi being quadratic, the part's own area is -(b - a)^3 Psi'' / 12;
    joined with what lies before and after, where nothing changes, h H = that + w (start + stop - a - b) / 2.
    """
    levels = torch.arange(depth, device=places.device).view(-1, 1, 1)
    second = torch.arange(2, device=places.device).view(2, 1, 1, 1, 1)
    half = 1 << depth - 1 - levels
    low = (2 * places + second) * half
    a, b = torch.maximum(start, low), torch.minimum(stop, low + half)
    d, y = (x.to(dtype) / half for x in ((b - a).clamp(min=0), a + b - 2 * low))
    root, sign = torch.exp2(-0.5 * levels.to(dtype)), 1 - 2 * second
    w = torch.stack([root / 4 * d * (3 * y - 2 - 2 * second), sign * root * d * (1 - y) * (math.sqrt(3) / 2)])
    cube = root * half * d**3 * 0.5**depth
    area = torch.stack([cube / -8, sign * cube * (math.sqrt(3) / 12)])
    area = area + w * (start + stop - a - b) * 0.5 ** (depth + 1)
    h = area / (torch.where(stop > start, stop - start, 1).to(dtype) * 0.5**depth)
    return iter(torch.stack([w, h]).sum(dim=2).unbind(2))


@final
@dataclass(frozen=True, eq=False)
class BrownianTree:
    """The Brownian motions of a batch between two times, over any interval, in any order.

    t0, t1: a number, or (B,), of each row. size: channels. depth: times are rounded to (t1 - t0) / 2^depth. number:
    trees of other numbers are independent, and all of them of the noise that steps with numbers have.
    Raises ValueError for a depth that is not among 1, ..., 32.
    """

    brownian: Brownian
    t0: float | Tensor
    t1: float | Tensor
    size: int
    depth: int = DEPTH
    number: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= DEEPEST:
            raise ValueError(f"expected a depth between 1 and {DEEPEST}, got {self.depth}; {DEPTH} resolves float32")

    @torch.no_grad()
    def __call__(
        self, s: float | Tensor, t: float | Tensor, *, batch: int, dtype: torch.dtype, device: torch.device
    ) -> Increment:
        """W and H over [s, t]: (B, size) each, never on the autograd graph. s, t: numbers, or (B,), of each row.

        Raises ValueError unless t0 <= s <= t <= t1.
        """
        t0, t1, s, t = (torch.as_tensor(x, dtype=torch.float64) for x in (self.t0, self.t1, s, t))
        if not bool(((t0 <= s) & (s <= t) & (t <= t1)).all()):
            raise ValueError(
                "expected an interval [s, t] within the tree's, t0 <= s <= t <= t1; give its tree other ends"
            )
        cells, span = 2**self.depth, torch.where(t1 > t0, t1 - t0, 1.0)
        start, stop = (((x - t0) / span * cells).round().to(device, torch.int64) for x in (s, t))
        key, index = self.brownian.branch(self.number), self.brownian.rows(batch, device)
        unit = increment(key, index, start, stop, self.size, dtype, self.depth)
        scale = (t1 - t0).sqrt().to(device, dtype).view(-1, 1)
        return Increment(scale * unit.w, scale * unit.h)
