"""Series checked, and padded into batches."""

from __future__ import annotations

import re

import pytest
import torch

from ndeflow.contracts import DataSpec, Series
from ndeflow.data.rows import join, padded, rows_of, to_batch

SPEC = DataSpec(channels=("a", "b"), mean=(1.0, 2.0), std=(2.0, 4.0), time_scale=10.0)
NAN = float("nan")


def test_padding_repeats_the_last_time_and_is_unobserved() -> None:
    ts = [torch.tensor([0.0, 1.0, 4.0]), torch.tensor([2.0])]
    ys = [torch.ones(3, 2), torch.ones(1, 2)]
    mask = [torch.ones(3, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)]
    filled = padded(ts, ys, mask)
    assert filled.ts.tolist() == [[0, 1, 4], [2, 2, 2]]
    assert not filled.mask[1, 1:].any() and not filled.ys[1, 1:].any()


def test_model_units() -> None:
    rows = rows_of(Series([torch.tensor([0.0, 5.0])], [torch.tensor([[1.0, NAN], [5.0, 10.0]])]))
    batch = to_batch(rows, SPEC, torch.tensor([7]))
    assert batch.ys.tolist() == [[[0.0, 0.0], [2.0, 2.0]]] and batch.mask.tolist() == [[[True, False], [True, True]]]
    assert batch.ts.tolist() == [[0.0, 0.5]] and batch.ts.dtype == torch.float64
    assert batch.ys.dtype == torch.float32 and batch.index.tolist() == [7]
    assert not batch.scored.any()


def test_what_lies_under_the_mask_does_not_matter() -> None:
    ts, mask = torch.arange(6.0).expand(4, 6), torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    values = torch.randn(4, 6, 2)
    batches = [
        to_batch(rows_of(Series(ts, torch.where(mask, values, other), given)), SPEC, torch.arange(4))
        for other, given in ((NAN, None), (NAN, mask), (1e9, mask))
    ]
    for batch in batches[1:]:
        assert batch.ys.equal(batches[0].ys) and batch.mask.equal(batches[0].mask)


def test_ragged_and_stacked_are_alike() -> None:
    ts, ys = torch.arange(5.0).expand(3, 5), torch.randn(3, 5, 2)
    stacked, ragged = rows_of(Series(ts, ys)), rows_of(Series(list(ts), list(ys)))
    assert all(a.equal(b) for a, b in zip(stacked.ys, ragged.ys, strict=True))


GOOD = Series(torch.arange(3.0).expand(2, 3), torch.zeros(2, 3, 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD._replace(ys=torch.zeros(2, 3)), "row 0: expected times (T,) and values (T, 3), got (3,) and (3,)"),
        (GOOD._replace(ys=torch.zeros(1, 3, 1)), "as many rows in ts, ys and mask, got 2, 1 and 1"),
        (GOOD._replace(ys=[torch.zeros(3, 1), torch.zeros(3, 2)]), "row 1: expected times (T,) and values (T, 1)"),
        (GOOD._replace(ts=torch.tensor([[0.0, 1, 2], [0, 2, 1]])), "row 1: expected finite, increasing times"),
        (GOOD._replace(ts=torch.tensor([[0.0, 1, NAN], [0, 1, 2]])), "row 0: expected finite, increasing times"),
        (
            GOOD._replace(ts=[torch.tensor([0.0, 1, 2]), torch.zeros(0)], ys=[torch.zeros(3, 1), torch.zeros(0, 1)]),
            "row 1: expected times (T,) and values (T, 1), got (0,) and (0, 1)",
        ),
        (GOOD._replace(ys=torch.full((2, 3, 1), float("inf"))), "row 0: infinite value"),
        (GOOD._replace(ys=[torch.zeros(3, 1), torch.tensor([[0.0], [0.0], [-float("inf")]])]), "row 1: infinite value"),
        (GOOD._replace(mask=torch.ones(2, 2, 1).bool()), "row 0: expected a mask of shape (3, 1), got (2, 1)"),
        (GOOD._replace(inputs=torch.zeros(3, 1)), "expected inputs of shape (2, S), got (3, 1)"),
        (GOOD._replace(inputs=torch.tensor([[0.0], [NAN]])), "row 1: expected finite inputs, got nan"),
        (GOOD._replace(inputs=torch.tensor([[0.0, -float("inf")], [1, 1]])), "row 0: expected finite inputs, got -inf"),
        (GOOD._replace(target=[1]), "expected one target a row, 2, got 1"),
        (Series([], []), "as many rows"),
    ],
)
def test_series_that_do_not_fit(bad: Series, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rows_of(bad)


def test_a_row_may_begin_before_the_one_above_ends() -> None:
    rows = rows_of(Series([torch.tensor([3.0, 4.0]), torch.tensor([0.0])], [torch.zeros(2, 1), torch.ones(1, 1)]))
    assert [t.tolist() for t in rows.ts] == [[3, 4], [0]] and [m.shape for m in rows.mask] == [(2, 1), (1, 1)]


def test_join_numbers_rows_through() -> None:
    rows, parts = join({"train": rows_of(GOOD), "test": rows_of(GOOD)})
    assert len(rows.ts) == 4 and parts["train"].tolist() == [0, 1] and parts["test"].tolist() == [2, 3]
    with pytest.raises(ValueError, match="same channels"):
        join({"train": rows_of(GOOD), "test": rows_of(GOOD._replace(ys=torch.zeros(2, 3, 2)))})
    with pytest.raises(ValueError, match="target of the same kind"):
        join({"train": rows_of(GOOD), "test": rows_of(GOOD._replace(target=[1, 2]))})
