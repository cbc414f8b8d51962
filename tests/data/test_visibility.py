"""Policies of what a model may read."""

from __future__ import annotations

import pytest
import torch

from ndeflow.data import Everything, First, FirstFraction, Hidden, Visibility

MASK = torch.tensor([[[1, 0], [0, 0], [1, 1], [0, 1], [1, 0]], [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]]).bool()
INDEX = torch.tensor([3, 7])


def test_everything() -> None:
    assert Everything().seen(MASK, INDEX).equal(MASK)


def test_first_counts_observed_times_of_any_channel() -> None:
    seen = First(2).seen(MASK, INDEX)
    assert seen.any(dim=-1).tolist() == [[True, False, True, False, False], [False, True, False, False, False]]
    assert seen[0, 2].all()


@pytest.mark.parametrize(("fraction", "times"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4), (0.01, 1)])
def test_first_fraction_rounds_and_keeps_one(fraction: float, times: int) -> None:
    seen = FirstFraction(fraction).seen(MASK, INDEX)
    assert seen.any(dim=-1).sum(dim=1).tolist() == [times, 1]


def test_hidden_is_a_share_fixed_by_row_time_and_channel() -> None:
    mask = torch.rand(200, 30, 3, generator=torch.Generator().manual_seed(0)) < 0.8
    index = torch.arange(200)
    seen = Hidden(0.3).seen(mask, index)
    assert abs(float(seen.sum() / mask.sum()) - 0.7) < 0.01
    assert not (seen & ~mask).any()
    rows = torch.tensor([150, 4])
    assert Hidden(0.3).seen(mask[rows, :20], rows).equal(seen[rows, :20])
    assert not Hidden(0.3, seed=1).seen(mask, index).equal(seen)


def test_hidden_leaves_each_row_a_value() -> None:
    mask = torch.ones(500, 2, 1, dtype=torch.bool)
    assert Hidden(0.95).seen(mask, torch.arange(500)).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("policy", [Everything(), First(1), FirstFraction(0.5), Hidden(0.5)])
def test_an_empty_row_stays_empty(policy: Visibility) -> None:
    assert not policy.seen(torch.zeros(2, 4, 3, dtype=torch.bool), INDEX).any()


@pytest.mark.parametrize(("policy", "value"), [(First, 0), (FirstFraction, 0.0), (FirstFraction, 1.1), (Hidden, 1.0)])
def test_policies_that_cannot_be(policy: type, value: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        policy(value)
