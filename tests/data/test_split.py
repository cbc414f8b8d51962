"""Splits by row."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ndeflow.data.split import split


def labels(rows: int, classes: int) -> list[str]:
    return [str(i * i % classes) for i in range(rows)]


@pytest.mark.parametrize("given", [None, labels(1000, 7)])
def test_shares(given: list[str] | None) -> None:
    parts = split(1000, given, seed=0)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [700, 150, 150]
    assert torch.cat(list(parts.values())).sort().values.equal(torch.arange(1000))


def test_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(0)
    once = split(100, None, seed=5)
    torch.manual_seed(1)
    again, other = split(100, None, seed=5), split(100, None, seed=6)
    assert all(once[name].equal(again[name]) for name in once)
    assert not once["test"].equal(other["test"])


def test_stratified_within_one_row_of_each_class() -> None:
    given = labels(300, 11)
    parts = split(300, given, seed=2)
    for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        counts = Counter(given[i] for i in parts[name].tolist())
        assert all(abs(counts[label] - share * total) <= 1.51 for label, total in Counter(given).items())


def test_small_classes_stay_in_training() -> None:
    given = ["common"] * 20 + ["rare"] + ["pair"] * 2
    for seed in range(20):
        parts = split(23, given, seed)
        assert {given[i] for i in parts["train"].tolist()} == {"common", "rare", "pair"}


@pytest.mark.parametrize("rows", [3, 4, 5, 7])
def test_each_part_has_a_row(rows: int) -> None:
    assert min(len(part) for part in split(rows, None, seed=1).values()) >= 1
    assert min(len(part) for part in split(rows, [str(i) for i in range(rows)], seed=1).values()) >= 1


def test_two_rows_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 3 series"):
        split(2, None, seed=0)
