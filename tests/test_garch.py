"""The GARCH model beside the recipe of returns: moments of its simulation, its fit."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from ndeflow import resources


@pytest.fixture(scope="module")
def garch() -> Any:
    spec = spec_from_file_location("returns_references", resources.recipes()["returns"].with_name("references.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_simulation_has_the_moments_of_the_process(garch):
    model = garch.Garch(2.0, 0.15, 0.6, 60.0)
    x = model.simulate(6000, 40, np.random.default_rng(0))
    kurtosis = 3 * (60 - 2) / (60 - 4)
    total = model.alpha + model.beta
    fourth = kurtosis * (1 - total**2) / (1 - total**2 - (kurtosis - 1) * model.alpha**2)
    assert np.mean(x**2) == pytest.approx(2.0, rel=0.02)
    assert np.mean(x**4) / np.mean(x**2) ** 2 == pytest.approx(fourth, rel=0.05)
    first = model.alpha * (1 - model.beta * total) / (1 - 2 * model.alpha * model.beta - model.beta**2)
    s = x**2 - np.mean(x**2)
    for lag in (1, 2, 4):
        found = np.mean(s[:, :-lag] * s[:, lag:]) / np.mean(s**2)
        assert found == pytest.approx(first * total ** (lag - 1), abs=0.02)


def test_without_memory_its_likelihood_is_that_of_students_t(garch):
    x = np.random.default_rng(1).standard_normal((3, 50))
    scale = np.sqrt(1.7 * (5.0 - 2) / 5.0)
    expected = -student.logpdf(x, 5.0, scale=scale).mean()
    assert garch.Garch(1.7, 0.0, 0.0, 5.0).nll(x) == pytest.approx(expected)


def test_a_fit_finds_the_process_again(garch):
    true = garch.Garch(1.0, 0.1, 0.8, 8.0)
    x = true.simulate(60, 250, np.random.default_rng(2))
    found = garch.fit(x)
    assert found.alpha == pytest.approx(0.1, abs=0.03) and found.beta == pytest.approx(0.8, abs=0.06)
    assert found.degrees == pytest.approx(8.0, abs=2.0) and found.nll(x) <= true.nll(x)


def test_short_windows_are_compared_at_the_lags_that_they_have(garch):
    days = torch.randn(2, 250, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = days.unfold(1, 6, 6).flatten(0, 1)[..., None]
    data = SimpleNamespace(blocks=lambda split: days, test=SimpleNamespace(ys=windows))
    assert all(0 < value < 1 for value in garch.references(data, 0).values())
