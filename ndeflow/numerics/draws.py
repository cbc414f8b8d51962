"""Intervals of a distribution that is known by its draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantiles(draws: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles over draws at position p (S + 1) of the sorted draws, linear between them, clamped to their range.

    One more draw from the same distribution falls below the p-quantile with probability p exactly where p (S + 1) is
    an integer from 1 to S (Weibull 1939; type 6 of Hyndman & Fan 1996).

    draws: (S, *shape). levels: L numbers in [0, 1] -> (L, *shape).
    """
    ordered, count = draws.sort(dim=0).values, len(draws)
    places = [min(max(level * (count + 1) - 1, 0.0), count - 1.0) for level in levels]
    return torch.stack([torch.lerp(ordered[int(p)], ordered[math.ceil(p)], p - int(p)) for p in places])


def coverage(draws: Tensor, ys: Tensor, level: float = 0.9) -> Tensor:
    """1 where a value lies in the central interval of its draws with probability `level`, else 0.

    A calibrated forecast has mean `level`; with S < 2 / (1 - level) - 1 draws their whole range is still too narrow
    and the mean at most (S - 1) / (S + 1).

    draws: (S, *shape). ys: (*shape) -> (*shape), in the draws' dtype.
    """
    low, high = quantiles(draws, [(1 - level) / 2, (1 + level) / 2])
    return ((ys >= low) & (ys <= high)).to(draws.dtype)
