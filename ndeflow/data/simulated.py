"""Paths of known equations, simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.fields.known import CubicSpiral
from ndeflow.metrics import moments
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic

START, STEPS = (2.0, 0.0), 1000  # Milstein's, at least, from 0 to 1: the drift is cubic


@final
class Spirals(DataModule):
    """Paths of `CubicSpiral` from (2, 0), each with noise of its own, at so many equally spaced times of [0, 1].

    train_paths, val_paths, test_paths: how many are drawn, with `split_seed`; the first value is seen. Milstein's
    method, in steps of at most 1 / 1000. `reference/moments`: the `MomentMatching` of as many other paths as are for
    testing, on average that of a model whose law is the true one. Raises ValueError for fewer than two paths or times.
    """

    channel_names = ("u", "v")

    def __init__(
        self,
        *,
        train_paths: int = 1000,
        val_paths: int = 2000,
        test_paths: int = 2000,
        points: int = 30,
        batch_size: int = 100,
        eval_batch_size: int | None = 2000,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, split_seed=split_seed)
        self.counts, self.points = {"train": train_paths, "val": val_paths, "test": test_paths}, points
        if min(points, *self.counts.values()) < 2:
            raise ValueError(f"expected at least two points, and two paths a split, got {points}, {self.counts}")

    def series(self) -> Mapping[str, Series]:
        ends = torch.tensor(list(self.counts.values())).cumsum(dim=0).tolist()
        return {
            split: self._series(torch.arange(end - count, end))
            for (split, count), end in zip(self.counts.items(), ends, strict=True)
        }

    def references(self) -> dict[str, float]:
        known = self.test.ys[None].double()
        first = sum(self.counts.values())
        other = self.paths(torch.arange(first, first + self.counts["test"]))[None]
        one = torch.ones_like(known[0])
        gaps = [(a - b).square()[1:].mean() for a, b in zip(moments(known, one), moments(other, one), strict=True)]
        return {"reference/moments": float(sum(gaps))}

    @torch.no_grad()
    def paths(self, index: Tensor) -> Tensor:
        """(N, T, 2) float64, the paths of these numbers (N,)."""
        y0 = torch.tensor(START, dtype=torch.float64).expand(len(index), -1)
        solver = Stochastic("milstein", math.ceil(STEPS / (self.points - 1)), compile="off")
        return solve(
            CubicSpiral().double(), y0, self._times(), solver=solver, noise=Brownian(self.split_seed, index)
        ).ys

    def _series(self, index: Tensor) -> Series:
        return Series(self._times().expand(len(index), -1), self.paths(index))

    def _times(self) -> Tensor:
        return torch.linspace(0, 1, self.points, dtype=torch.float64)
