"""Controllers: their formulas, their bounds, and settings that make no sense."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.numerics.controllers import PI, I


def test_elementary_controller_aims_at_the_tolerance():
    assert I().factor(0.5, 1.0, 5) == pytest.approx(0.9 * 0.5**-0.2)
    assert I().factor(32.0, 1.0, 5) == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("ratio", "factor"), [(0.0, 10.0), (1e-30, 10.0), (1e9, 0.2), (math.nan, 0.2), (math.inf, 0.2)]
)
@pytest.mark.parametrize("controller", [I(), PI()])
def test_factors_are_bounded(controller, ratio, factor):
    assert controller.factor(ratio, 1.0, 5) == factor


def test_proportional_integral_controller_damps_growth_after_small_errors():
    assert PI().factor(0.5, 0.25, 5) == pytest.approx(0.9 * 0.5 ** (-0.7 / 5) * 0.25 ** (0.4 / 5))
    assert PI().factor(0.5, 0.01, 5) < PI().factor(0.5, 1.0, 5)
    assert PI().factor(32.0, 0.01, 5) == I().factor(32.0, 1.0, 5)


@pytest.mark.parametrize("controller", [I(), PI()])
def test_factors_of_rows_are_those_of_numbers(controller):
    ratios, previous = [0.0, 1e-30, 0.3, 1.0, 1.5, 40.0, math.nan, math.inf], [1.0, 0.2, 1e-9, 0.5, 0.5, 1.0, 1.0, 0.1]
    rows = controller.factors(*(torch.tensor(x, dtype=torch.float64) for x in (ratios, previous)), 5)
    assert rows.tolist() == pytest.approx([controller.factor(r, p, 5) for r, p in zip(ratios, previous, strict=True)])


@pytest.mark.parametrize("settings", [{"safety": 0.0}, {"smallest": 1.5}, {"largest": 0.9}])
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected 0 < smallest < 1 < largest"):
        I(**settings)
