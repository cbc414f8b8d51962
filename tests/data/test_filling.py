"""Hidden values filled in by linear interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec
from ndeflow.data.filling import interpolated, linear_scores


def batch_of(ys: Tensor, seen: Tensor, ts: Tensor | None = None) -> Batch:
    rows, length, _ = ys.shape
    times = torch.arange(length, dtype=torch.float64).expand(rows, -1) if ts is None else ts
    return Batch(times, ys, torch.ones_like(seen), seen, None, None, torch.arange(rows))


def test_between_seen_values_linear_in_time_and_beyond_them_constant() -> None:
    ys = torch.tensor([[[9.0, 9], [1, 9], [9, 9], [4, 9], [9, 9]]])
    seen = torch.tensor([[[0, 0], [1, 0], [0, 0], [1, 0], [0, 0]]]).bool()
    times = torch.tensor([[0.0, 1, 3, 4, 5]], dtype=torch.float64)
    assert interpolated(batch_of(ys, seen, times))[0].T.tolist() == [[1, 1, 3, 4, 4], [0, 0, 0, 0, 0]]


def test_scores_are_in_the_datas_units() -> None:
    """Errors e = -(-1)^row of std 1 in the training rows, twice as large in the test rows, z = y / 3."""
    sign = torch.tensor([1.0, -1])[:, None, None]
    seen = torch.tensor([True, False, True])[None, :, None].expand(2, -1, -1)
    train, test = (batch_of(torch.cat([0 * sign, k * sign, 0 * sign], dim=1), seen) for k in (1, 2))
    found = linear_scores(train, test, DataSpec(channels=("y",), mean=(0.0,), std=(3.0,)))
    assert found["reference/linear_rmse"] == pytest.approx(6)
    assert found["reference/linear_log_likelihood"] == pytest.approx(-math.log(2 * math.pi * 9) / 2 - 4 / 2)
