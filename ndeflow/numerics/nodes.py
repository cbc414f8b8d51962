"""Steps that are nodes of dyadic trees, so that a Brownian path stays what it is, whichever steps are rejected.

A node is the interval [p, p + 1] / 2^j of a segment. A step that was tried over a node and rejected is followed by one
over its left half or less, and no later step reaches over the end of a node that was looked at: the mesh holds all
places where the path was seen. A mesh that skipped them would be chosen by what it then forgets, and the solution
would have another law. Gaines, Lyons 1997, Variable step size control in the numerical solution of stochastic
differential equations, SIAM J. Appl. Math. 57(5); Foster, Jelincic 2024, On the convergence of adaptive approximations
for stochastic differential equations, arXiv 2311.14201, section 3.

The noise of nodes is that of `tree`; each node is split once for as long as the march stays below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.stepper import Stepper
from ndeflow.numerics.system import System
from ndeflow.numerics.tree import DEPTH, LEVEL

CELLS = 1 << DEPTH
ROOT3 = math.sqrt(3)


class Splits:
    """The Brownian motions of some rows over nodes: W and V = sqrt(12) H of the segment, and of the halves of a node.

    Pairs are (L, 2, m): W and V, of unit-interval Brownian motions, of the variance of a node's length both. The halves
    of `tree` are W' = W / 2 +- (sqrt(3) V + sqrt(h) X1) / 4 and V' = (V - sqrt(3 h) X1) / 4 +- sqrt(h) X2 / 2. key,
    index: see `Brownian`.
    """

    def __init__(self, noise: Brownian, leg: System, index: Tensor, stepper: Stepper) -> None:
        self.leg, self.index, self.stepper = leg, index, stepper
        self.key = torch.tensor(noise.branch(leg.segment), device=index.device).unbind()

    def root(self, place: Tensor) -> Tensor:
        """The pair of the whole segment. place: 0, as `halves` will be given it."""
        return torch.stack([*self._normals(place.new_zeros(()), place)], dim=1)

    def halves(self, pair: Tensor, level: int, place: Tensor) -> Tensor:
        """(L, 2, 2, m): the pairs of the left and right half of a node. place: 0-dim, or (L,), of each row."""
        word = place.new_full((), (level + 1) << LEVEL)
        x1, x2 = self._normals(word, place)
        root, (w, v) = 2.0 ** (-0.5 * level), pair.unbind(1)
        odd = torch.stack([(0.25 * ROOT3) * v + (0.25 * root) * x1, (0.5 * root) * x2], dim=1)
        even = torch.stack([0.5 * w, 0.25 * v - (0.25 * ROOT3 * root) * x1], dim=1)
        return torch.stack([even + odd, even - odd], dim=1)

    def _normals(self, word: Tensor, place: Tensor) -> Sequence[Tensor]:
        low, high = self.key
        return self.stepper.normals(self.leg, word, place, low, high, self.index)


@final
class Nodes:
    """The nodes that all rows step over together.

    parts: what the noise of a step, (B, 2, m) standard normals, is of: 1, W and V of the whole; 2, W of its halves.
    """

    def __init__(self, noise: Brownian, rows: Tensor, stepper: Stepper, parts: int) -> None:
        self.noise, self.rows, self.stepper, self.parts = noise, rows, stepper, parts
        self.least = 1.0 / CELLS

    def enter(self, leg: System) -> None:
        """Go to the start of a segment."""
        self.splits = Splits(self.noise, leg, self.rows, self.stepper)
        self.pair = self.splits.root(self.rows.new_zeros(()))
        self.path: list[tuple[int, Tensor]] = []  # for each level the place of the node that was split, and its halves

    def fit(self, theta: float, dtheta: float) -> float:
        """The size of the largest node that begins at theta and is not larger than dtheta, or the smallest one."""
        place = round(theta * CELLS)
        size = 2.0 ** math.floor(math.log2(min(max(dtheta, self.least), 1.0)))
        return min(size, (place & -place) / CELLS if place else 1.0)

    def normals(self, theta: float, size: float) -> Tensor:
        """The noise of the step over a node."""
        level = round(-math.log2(size))
        place = round(theta * 2**level)
        if self.parts == 2:
            return self._halves(level, place)[:, :, 0] * 2.0 ** (0.5 * (level + 1))
        return self._pair(level, place) * 2.0 ** (0.5 * level)

    def _pair(self, level: int, place: int) -> Tensor:
        return self._halves(level - 1, place >> 1)[:, place & 1] if level else self.pair

    def _halves(self, level: int, place: int) -> Tensor:
        """The pairs of the halves of a node, split now unless it was."""
        if level < len(self.path) and self.path[level][0] == place:
            return self.path[level][1]
        pair = self._pair(level, place)
        halves = self.splits.halves(pair, level, self.rows.new_full((), place))
        self.path[level:] = [(place, halves)]
        return halves


@final
class RowNodes:
    """The nodes that each row steps over at its own pace; see `Nodes`.

    places: (D, L) int64, for each level the place of the node that was split, -1 at first. path: (D, L, 2, 2, m), its
    halves.
    """

    def __init__(self, noise: Brownian, rows: Tensor, stepper: Stepper, parts: int) -> None:
        self.noise, self.rows, self.stepper, self.parts = noise, rows, stepper, parts
        self.least = 1.0 / CELLS
        self.levels = torch.arange(DEPTH + 1, device=rows.device).unsqueeze(1)

    def enter(self, leg: System, rows: Tensor | None) -> None:
        """Go to the start of a segment with some rows; None: all."""
        index = self.rows if rows is None else self.rows[rows]
        self.splits = Splits(self.noise, leg, index, self.stepper)
        self.pair = self.splits.root(torch.zeros_like(index))
        self.places = index.new_full((DEPTH + 1, len(index)), -1)
        self.path = self.pair.new_zeros(DEPTH + 1, len(index), 2, *self.pair.shape[1:])

    def keep(self, leg: System, stay: Tensor) -> None:
        """Go on with some of the rows (L,), by their places among those so far."""
        self.splits.leg, self.splits.index = leg, self.splits.index[stay]
        self.pair, self.places, self.path = self.pair[stay], self.places[:, stay], self.path[:, stay]

    def fit(self, theta: Tensor, dtheta: Tensor) -> Tensor:
        """As `Nodes.fit`, (L,)."""
        place = (theta * CELLS).round().long()
        aligned = torch.where(place > 0, place & -place, CELLS).to(theta.dtype) / CELLS
        return torch.minimum(dtheta.clamp(self.least, 1.0).log2().floor().exp2(), aligned)

    def reach(self, theta: Tensor, size: Tensor) -> Tensor:
        """From which level up to which nodes must be split for these steps, of rows not at the end: (2,) int64."""
        _, missing = self._missing(theta, size)
        every = (missing & (theta < 1)).any(dim=1).long()
        return torch.stack([every.argmax(), (every * (self.levels[:, 0] + 1)).amax()])

    def normals(self, theta: Tensor, size: Tensor, first: int, last: int) -> Tensor:
        """The noise of steps (L,) over nodes. first, last: what `reach` says."""
        places, missing = self._missing(theta, size)
        for level in range(first, last):
            halves = self.splits.halves(self._pair(level, places), level, places[level])
            self.path[level] = torch.where(missing[level].view(-1, 1, 1, 1), halves, self.path[level])
        self.places = torch.where(missing, places, self.places)
        level, row = self._level(size), torch.arange(len(size), device=size.device)
        root = size.rsqrt().to(self.pair.dtype).view(-1, 1, 1)
        if self.parts == 2:
            return self.path[level, row, :, 0] * (root * math.sqrt(2))
        own = self.path[level - 1, row, places[level, row] & 1]
        return torch.where((level > 0).view(-1, 1, 1), own, self.pair) * root

    def _pair(self, level: int, places: Tensor) -> Tensor:
        if level == 0:
            return self.pair
        right = (places[level] & 1).view(-1, 1, 1) == 1
        return torch.where(right, self.path[level - 1, :, 1], self.path[level - 1, :, 0])

    def _missing(self, theta: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The places (D, L) of the nodes about theta, and which of them must be split and were not."""
        places = (theta * CELLS).round().long() >> DEPTH - self.levels
        return places, (self.levels < self._level(size) + (self.parts - 1)) & (places != self.places)

    def _level(self, size: Tensor) -> Tensor:
        return size.log2().neg().round().long()
