"""Scores of forecasts, and averages of scores that are exact over a whole split, however it is cut into batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from ndeflow.numerics.segments import wide


class Weighted(NamedTuple):
    """A metric that is sum(values * weights) / sum(weights) over a split, its square root with `root`.

    values: any shape. weights: broadcasts to it, not negative; None: 1. Values of weight 0 never enter, NaN included.
    """

    values: Tensor
    weights: Tensor | None = None
    root: bool = False


class Reducer(Protocol):
    """What adds tensors over processes: a Lightning strategy."""

    @property
    def root_device(self) -> torch.device: ...

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: Any = "mean") -> Any: ...


@final
class Averages:
    """Weighted means over all batches of a split; sums in float64 where the device has it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._roots: dict[str, bool] = {}

    def add(self, metrics: Mapping[str, Tensor | Weighted]) -> None:
        """Take in one batch. A tensor counts with each of its elements.

        Raises ValueError where a name was a root mean before and is not now, or the reverse.
        """
        for name, given in metrics.items():
            metric = given if isinstance(given, Weighted) else Weighted(given)
            if self._roots.setdefault(name, metric.root) != metric.root:
                raise ValueError(f"expected metric {name!r} with the same `root` in all batches, got both")
            sums = _sums(metric)
            before = self._sums.get(name)
            self._sums[name] = sums if before is None else before + sums

    def reduced(self, strategy: Reducer) -> Averages:
        """The averages over all processes, which must have added the same names."""
        total = Averages()
        if self._sums:
            names = sorted(self._sums)
            stacked = torch.stack([self._sums[name].to(strategy.root_device) for name in names])
            total._sums = dict(zip(names, strategy.reduce(stacked, reduce_op="sum"), strict=True))
            total._roots = dict(self._roots)
        return total

    def compute(self) -> dict[str, float]:
        """Name -> value, in the order of their names' first appearance; NaN where all weights were 0."""
        found = {}
        for name, root in self._roots.items():
            value, weight = self._sums[name].tolist()
            mean = value / weight if weight else math.nan
            found[name] = math.sqrt(mean) if root and not mean < 0 else math.nan if root else mean
        return found


def _sums(metric: Weighted) -> Tensor:
    """(2,): the sum of weighted values and the sum of weights."""
    values = wide(metric.values.detach())
    if metric.weights is None:
        return torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
    weights = metric.weights.detach().to(values).expand_as(values)
    return torch.stack([torch.where(weights > 0, values * weights, 0.0).sum(), weights.sum()])


def crps(draws: Tensor, ys: Tensor) -> Tensor:
    """Continuous ranked probability score of each value, in its own units; smaller is better.

    The fair estimator mean_s |x_s - y| - sum_{s<r} |x_s - x_r| / (S (S - 1)), unbiased in S (Gneiting & Raftery 2007,
    eq. 21; Ferro 2014), by sorting: sum_{s<r} |x_s - x_r| = sum_i (2i - S + 1) x_(i), i = 0..S-1.

    draws: (S, *shape). ys: (*shape) -> (*shape). Raises ValueError for fewer than two draws.
    """
    count = _enough(draws)
    errors = (draws - ys).sort(dim=0).values
    ranks = torch.arange(1 - count, count, 2, dtype=errors.dtype, device=errors.device)
    spread = torch.tensordot(ranks, errors, dims=1) / (count * (count - 1))
    return errors.abs().mean(dim=0) - spread


def energy_score(draws: Tensor, ys: Tensor) -> Tensor:
    """Energy score of each vector: the CRPS with Euclidean distances, so that dependence between channels counts.

    mean_s |x_s - y| - sum_{s<r} |x_s - x_r| / (S (S - 1)) (Gneiting & Raftery 2007, eq. 22, fair in S).

    draws: (S, *shape, C). ys: (*shape, C) -> (*shape). Raises ValueError for fewer than two draws.
    """
    count = _enough(draws)
    first, second = torch.triu_indices(count, count, offset=1, device=draws.device)
    spread = _length(draws[first] - draws[second]).sum(dim=0) / (count * (count - 1))
    return _length(draws - ys).mean(dim=0) - spread


def gaussian_nll(mean: Tensor, std: Tensor, ys: Tensor) -> Tensor:
    """-log N(y; mean, std^2) = ((y - mean) / std)^2 / 2 + log std + log(2 pi) / 2, elementwise, in nats."""
    return ((ys - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of x (S, B, T, C) over draws and rows, with weights (B, T, C) of 0 or 1: (T, C) each.

    Values of weight 0 never enter. Where fewer than two do, the variance is 0.
    """
    kept = torch.where(weights > 0, x, torch.zeros_like(x))
    count = len(x) * weights.sum(dim=0)
    mean = kept.sum(dim=(0, 1)) / count.clamp(min=1)
    squares = torch.where(weights > 0, kept - mean, torch.zeros_like(x)).square()
    return mean, squares.sum(dim=(0, 1)) / (count - 1).clamp(min=1)


def kolmogorov(first: Tensor, second: Tensor) -> Tensor:
    """Kolmogorov's distance of two samples (N,) and (M,): the greatest difference of their distribution functions."""
    places = torch.cat([first, second])
    below = [torch.searchsorted(x.sort().values, places, right=True).to(places.dtype) / len(x) for x in (first, second)]
    return (below[0] - below[1]).abs().max()


def sliced_wasserstein(first: Tensor, second: Tensor, *, directions: int = 128) -> Tensor:
    """The sliced Wasserstein-2 distance of two samples (N, d): the root of mean_u W2^2(u . first, u . second).

    The mean is over unit vectors u, the same in all calls; on a line W2^2 = mean_i (a_(i) - b_(i))^2, of sorted values.
    Rabin, Peyre, Delon, Bernot 2011, "Wasserstein barycenter and its application to texture mixing". Two samples of one
    law are not at distance 0. Raises ValueError unless both have one shape.
    """
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"expected two samples of one shape (N, d), got {tuple(first.shape)} and {tuple(second.shape)}; "
            "leave out rows of the larger"
        )
    u = torch.randn(directions, first.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        first
    )
    u = u / _length(u)[:, None]
    a, b = (torch.sort(u @ x.mT, dim=1).values for x in (first, second))
    return (a - b).square().mean().sqrt()


def lagged_correlation(first: Tensor, second: Tensor, lags: int) -> Tensor:
    """Correlation of first at t with second at t + k for k = 1 ... lags, over all rows and times.

    first, second: (B, T, ...), means and standard deviations over rows and times -> (lags, ...). Raises ValueError
    for lags that are not from 1 to T - 1.
    """
    if not 0 < lags < first.shape[1]:
        raise ValueError(f"expected lags from 1 to {first.shape[1] - 1}, one less than there are times, got {lags}")
    a, b = (x - x.mean(dim=(0, 1)) for x in (first, second))
    scale = (a.square().mean(dim=(0, 1)) * b.square().mean(dim=(0, 1))).sqrt()
    return torch.stack([(a[:, :-k] * b[:, k:]).mean(dim=(0, 1)) / scale for k in range(1, lags + 1)])


def _enough(draws: Tensor) -> int:
    if len(draws) < 2:
        raise ValueError(f"expected at least two draws to score their distribution, got {len(draws)}; draw more")
    return len(draws)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)
