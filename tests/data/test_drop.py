"""Dropped observations."""

from __future__ import annotations

import pytest
import torch

from ndeflow.contracts import Series
from ndeflow.data.counter import uniform
from ndeflow.data.drop import dropped
from ndeflow.data.rows import Rows, rows_of


def many(length: int = 20) -> Rows:
    return rows_of(Series(torch.arange(float(length)).expand(300, -1), torch.randn(300, length, 3)))


def share(rows: Rows, length: int = 20) -> float:
    return sum(int(mask.sum()) for mask in rows.mask) / (300 * length * 3)


def test_uniform_numbers_are_uniform_and_depend_on_each_coordinate() -> None:
    rows, places = torch.arange(1000)[:, None], torch.arange(50)
    draw = uniform(1, rows, places)
    counts = torch.histc(draw.float(), 20, 0, 1) / draw.numel()
    assert float((counts - 0.05).abs().max()) < 0.004
    assert abs(float(torch.corrcoef(torch.stack([draw[:-1].flatten(), draw[1:].flatten()]))[0, 1])) < 0.02
    assert uniform(1, torch.tensor(7), torch.tensor(3)).tolist() == [draw[7, 3].item()]
    assert not uniform(1, places, rows).equal(draw) and not uniform(2, rows, places).equal(draw)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_the_fraction_is_dropped(fraction: float, per_channel: bool) -> None:
    assert abs(share(dropped(many(), fraction, 0, per_channel=per_channel)) - (1 - fraction)) < 0.02


def test_whole_times_or_single_values() -> None:
    times = dropped(many(), 0.5, 0, per_channel=False)
    assert all(mask.all() for mask in times.mask)
    assert all(len(t) == len(y) == len(m) for t, y, m in zip(times.ts, times.ys, times.mask, strict=True))
    values = dropped(many(), 0.5, 0, per_channel=True)
    assert all(mask.any(dim=1).all() for mask in values.mask)
    assert not all(mask.all() for mask in values.mask)


def test_larger_fractions_drop_the_same_and_more() -> None:
    less, more = (dropped(many(), fraction, 0, per_channel=True) for fraction in (0.3, 0.6))
    for row in range(300):
        kept = {
            (float(t), c) for t, m in zip(less.ts[row], less.mask[row], strict=True) for c in m.nonzero()[:, 0].tolist()
        }
        still = {
            (float(t), c) for t, m in zip(more.ts[row], more.mask[row], strict=True) for c in m.nonzero()[:, 0].tolist()
        }
        assert still <= kept


def test_a_function_of_seed_row_time_and_channel() -> None:
    rows = many()
    once, again, other = (dropped(rows, 0.5, seed, per_channel=True) for seed in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(once.mask, again.mask, strict=True))
    assert not all(a.equal(b) for a, b in zip(once.mask, other.mask, strict=True))
    part = dropped(rows.take(torch.arange(10)), 0.5, 0, per_channel=True)
    assert all(a.equal(b) for a, b in zip(part.mask, once.mask[:10], strict=True))


@pytest.mark.parametrize("per_channel", [True, False])
def test_two_times_of_each_row_stay(per_channel: bool) -> None:
    rows = dropped(many(length=3), 0.99, 0, per_channel=per_channel)
    assert min(len(t) for t in rows.ts) >= 2


def test_times_that_were_empty_before_stay() -> None:
    ys = torch.randn(1, 10, 1)
    ys[0, 8:] = float("nan")
    rows = dropped(rows_of(Series(torch.arange(10.0)[None], ys)), 0.5, 0, per_channel=True)
    assert rows.ts[0][-2:].tolist() == [8, 9] and not rows.mask[0][-2:].any()
    assert len(rows.ts[0]) < 10
