"""Observations dropped on purpose: irregular sampling made from regular, the same for every model."""

from __future__ import annotations

import torch
from torch import Tensor

from ndeflow.data.counter import uniform
from ndeflow.data.rows import Rows

KEPT_TIMES = 2


def dropped(rows: Rows, fraction: float, seed: int, *, per_channel: bool) -> Rows:
    """The rows without a random `fraction` of their observations; times at which none is left go too.

    An observation goes where u(seed, row, place in time, channel) < fraction; without `per_channel` the draw is
    the time's own and takes all channels. So a larger fraction drops the same ones and more. Each row keeps
    observations at two times at least.
    """
    kept = [kept_mask(mask, row, fraction, seed, per_channel) for row, mask in enumerate(rows.mask)]
    stay = [new.any(dim=1) | ~old.any(dim=1) for new, old in zip(kept, rows.mask, strict=True)]
    return rows._replace(
        ts=[t[s] for t, s in zip(rows.ts, stay, strict=True)],
        ys=[y[s] for y, s in zip(rows.ys, stay, strict=True)],
        mask=[m[s] for m, s in zip(kept, stay, strict=True)],
    )


def kept_mask(mask: Tensor, row: int, fraction: float, seed: int, per_channel: bool) -> Tensor:
    """(T, C) bool, a subset of `mask`."""
    length, channels = mask.shape
    place = torch.arange(channels) if per_channel else torch.zeros(1, dtype=torch.long)
    draw = uniform(seed, torch.tensor(row), torch.arange(length)[:, None], place).expand(length, channels)
    draw = draw.masked_fill(~mask, -1.0)
    kept = draw >= fraction
    latest = draw.amax(dim=1)
    for time in latest.topk(min(KEPT_TIMES, length)).indices.tolist():
        kept[time] |= (draw[time] == latest[time]) & mask[time]
    return kept
