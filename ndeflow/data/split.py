"""Splits by row: a function of the seed, stratified by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ndeflow.data.targets import natural_order
from ndeflow.numerics.seeds import mix

VAL_SHARE, TEST_SHARE = 0.15, 0.15


def split(rows: int, labels: Sequence[str] | None, seed: int) -> dict[str, Tensor]:
    """Row numbers of train (70 %), val (15 %) and test (15 %), each sorted. Raises ValueError for fewer than 3 rows."""
    if rows < 3:
        raise ValueError(
            f"expected at least 3 series to split into train, val and test, got {rows}; cut long series into "
            "several (one id each), or give the split: a column `split`, or a dict from series()"
        )
    rest, test = carve(torch.arange(rows), labels, TEST_SHARE, mix(seed, 0))
    train, val = carve(rest, labels, VAL_SHARE / (1 - TEST_SHARE), mix(seed, 1))
    return {"train": train, "val": val, "test": test}


def carve(rows: Tensor, labels: Sequence[str] | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Take a random `share` of the rows out, at least one: (rest, part), both sorted.

    Of each class its share, the fractions carried over to the next class; one row of a class always stays.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = rows[torch.randperm(len(rows), generator=generator)].tolist()
    groups = [shuffled] if labels is None else grouped(shuffled, labels)
    part: list[int] = []
    due = 0.0
    for group in groups:
        due += share * len(group)
        count = min(math.floor(due + 0.5), len(group) - 1)
        due -= count
        part += group[:count]
    part = part or [row for group in groups if len(group) > 1 for row in group][:1] or shuffled[:1]
    taken = torch.tensor(sorted(part))
    return rows[~torch.isin(rows, taken)], taken


def grouped(rows: Sequence[int], labels: Sequence[str]) -> list[list[int]]:
    """The rows of each class, classes in natural order."""
    groups: dict[str, list[int]] = {label: [] for label in natural_order([labels[row] for row in rows])}
    for row in rows:
        groups[labels[row]].append(row)
    return list(groups.values())
