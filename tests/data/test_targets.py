"""Targets: classes in natural order, weights, numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ndeflow.data.targets import class_weights, codes, natural_order, rows_of_target


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "2", "1", "2"], ("1", "2", "10")),
        (["1", "-1", "0.5"], ("-1", "0.5", "1")),
        (["c10", "c2", "b", "c2"], ("b", "c2", "c10")),
        (["10", "2", "x"], ("2", "10", "x")),
    ],
)
def test_natural_order(labels: list[str], order: tuple[str, ...]) -> None:
    assert natural_order(labels) == order


@pytest.mark.parametrize("target", [["b", "a"], [2, 1], torch.tensor([2, 1]), np.array([True, False]), ["2", 1]])
def test_classes_are_text(target: Any) -> None:
    read = rows_of_target(target, 2)
    assert isinstance(read, list) and all(isinstance(label, str) for label in read)


@pytest.mark.parametrize("target", [[1.5, 2], torch.tensor([1.5, 2.0]), np.array([[1.5], [2.0]])])
def test_floats_are_numbers(target: Any) -> None:
    read = rows_of_target(target, 2)
    assert isinstance(read, torch.Tensor) and read.tolist() == [[1.5], [2.0]]


def test_a_missing_number_or_row_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        rows_of_target([1.0, float("nan")], 2)
    with pytest.raises(ValueError, match="one target a row, 3, got 2"):
        rows_of_target([1, 2], 3)


def test_class_weights_are_inverse_frequencies_of_mean_one() -> None:
    code = codes(["a", "b", "b", "b"], ("a", "b"))
    weights = torch.tensor(class_weights(code, 2))
    torch.testing.assert_close(weights, torch.tensor([2.0, 2.0 / 3.0]))
    assert float(weights[code].mean()) == pytest.approx(1.0)
