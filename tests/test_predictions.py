"""Predictions as text: in the data's own units, with the digits that tell them apart."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow import predictions
from ndeflow.contracts import Batch, DataSpec, Output

SPEC = DataSpec(("height", "flow"), (5432123.4, 0.0), (0.7, 1e30))


def forecast(prediction: torch.Tensor, **settings) -> predictions.Rows:
    """Of one series of three times, of which the first is seen."""
    mask = torch.ones(1, 3, 2, dtype=torch.bool)
    seen = mask.clone()
    seen[:, 1:] = False
    batch = Batch(torch.arange(3.0)[None], torch.zeros(1, 3, 2), mask, seen, None, None, torch.arange(1))
    output = Output(prediction, **settings)
    return predictions.rows(output, batch, SPEC, ["a"], [["0", "1", "2"]], forecast=True)


def test_a_large_offset_leaves_a_thousandth_of_the_spread_to_be_told():
    z = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [1.002, -2.0]]])
    one, other = forecast(z)
    assert float(one["height"]) == pytest.approx(5432124.1, abs=3.5e-4)
    assert float(other["height"]) - float(one["height"]) == pytest.approx(0.0014, abs=7e-4)
    assert (one["flow"], other["flow"]) == ("2e+30", "-2e+30")


def test_quantiles_of_draws_have_the_digits_of_the_values():
    z = torch.linspace(-1, 1, 21)[:, None, None, None].expand(21, 1, 3, 2)
    row = forecast(z, draws=True)[0]
    found = [float(row[f"height{name}"]) - SPEC.mean[0] for name in ("_q05", "", "_q95")]
    assert found == pytest.approx([-0.63, 0.0, 0.63], abs=7e-4)


def test_points_have_them_too():
    (row,) = predictions.point_rows(torch.tensor([[1.0, 0.5]]), SPEC)
    assert float(row["height"]) == pytest.approx(5432124.1, abs=3.5e-4)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.123456789, 1.0, "0.1234568"),
        (1234567.891, 1e9, "1234568"),
        (1234567.891, 1.0, "1234567.891"),
        (-1234567.891, 0.1, "-1234567.891"),
        (0.0, 1.0, "0"),
        (1 / 3, 1e-300, "0.33333333333333331"),
        (math.nan, 1.0, "nan"),
        (math.inf, 1.0, "inf"),
    ],
)
def test_digits(value, unit, expected):
    assert predictions.text(value, unit) == expected
