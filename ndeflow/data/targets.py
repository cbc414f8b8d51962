"""Targets: class labels in their natural order, or numbers to regress."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def rows_of_target(target: Any, rows: int) -> list[str] | Tensor | None:
    """Labels as N strings, numbers as (N, K) float64. Raises ValueError for a wrong count or a missing number.

    Floats are numbers to regress; integers, booleans and strings are class labels.
    """
    if target is None:
        return None
    if len(target) != rows:
        raise ValueError(f"expected one target a row, {rows}, got {len(target)}")
    if not isinstance(target, Tensor) and any(isinstance(value, str) for value in target):
        return [str(value) for value in target]
    values = torch.as_tensor(target).detach().cpu()
    if not values.is_floating_point():
        return [str(value) for value in values.tolist()]
    if not values.isfinite().all():
        raise ValueError("expected finite numbers as target")
    return values.double().reshape(rows, -1)


def joined(targets: Sequence[list[str] | Tensor | None]) -> list[str] | Tensor | None:
    """The targets of several parts as one. Raises ValueError where they are not of one kind."""
    if all(target is None for target in targets):
        return None
    if all(isinstance(target, list) for target in targets):
        return [label for target in targets if isinstance(target, list) for label in target]
    numbers = [target for target in targets if isinstance(target, Tensor)]
    if len(numbers) != len(targets) or len({target.shape[1] for target in numbers}) > 1:
        raise ValueError("expected a target of the same kind in train, val and test")
    return torch.cat(numbers)


def natural_order(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, numbers by value: "2" before "10", "c2" before "c10"."""
    distinct = set(labels)
    if all(is_number(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (float(label), label)))
    return tuple(sorted(distinct, key=pieces))


def pieces(label: str) -> list[tuple[int, str]]:
    """A sort key: the label cut into words and whole numbers."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"([0-9]+)", label)]


def is_number(text: str) -> bool:
    """Whether the text is a finite decimal number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def known_classes(labels: list[str], parts: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The classes of the training rows. Raises ValueError if another part has one more."""
    classes = natural_order([labels[i] for i in parts["train"].tolist()])
    new = {labels[i] for rows in parts.values() for i in rows.tolist()} - set(classes)
    if new:
        raise ValueError(
            f"class(es) {list(natural_order(list(new)))} occur in val/test but not in train; "
            "move a row of each into train, or leave them out"
        )
    return classes


def codes(labels: Sequence[str], classes: Sequence[str]) -> Tensor:
    """(N,) int64: the place of each label among the classes."""
    place = {label: i for i, label in enumerate(classes)}
    return torch.tensor([place[label] for label in labels], dtype=torch.long)


def class_weights(code: Tensor, classes: int) -> tuple[float, ...]:
    """n / (classes * n_c) for each class c: inverse frequencies, mean 1 over the n rows."""
    counts = torch.bincount(code, minlength=classes).double()
    return tuple((len(code) / (classes * counts)).tolist())
