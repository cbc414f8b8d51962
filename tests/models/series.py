"""Small irregular batches for tests of models."""

from __future__ import annotations

import torch

from ndeflow.contracts import Batch


def irregular_batch(rows: int = 5, length: int = 7, channels: int = 2, seed: int = 0) -> Batch:
    """Rows with their own times, some padded at the end, 60 % of the values seen, 80 % observed."""
    generator = torch.Generator().manual_seed(seed)
    ts = torch.rand(rows, length, generator=generator, dtype=torch.float64).sort(dim=1).values
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    padding = torch.arange(length) >= lengths[:, None]
    ts = torch.where(padding, ts.gather(1, lengths[:, None] - 1), ts)
    chance = torch.rand(rows, length, channels, generator=generator)
    mask = (chance < 0.8) & ~padding[..., None]
    seen = (chance < 0.6) & mask
    seen[:, 0], mask[:, 0] = True, True
    ys = torch.where(mask, torch.randn(rows, length, channels, generator=generator), torch.zeros(()))
    target = torch.randint(0, 3, (rows,), generator=generator)
    return Batch(ts, ys, mask, seen, target, None, torch.arange(rows))


def take(batch: Batch, rows: list[int]) -> Batch:
    return Batch(*[None if leaf is None else leaf[rows] for leaf in batch])
