"""Successive values of a rate, and the processes of the literature fitted to them."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ndeflow.data import MissingData, Rates
from ndeflow.data.rates import FLOOR, transition_nll


def spreads(folder: Path, count: int = 50) -> Path:
    path = folder / "default.csv.gz"
    lines = ["Date,AAA,BAA", *(f"1/1/{1919 + n},5.0,{5.5 + 0.01 * n + 0.1 * (n % 3)}" for n in range(count))]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig")))
    return path


def test_references_on_the_treasury_bill() -> None:
    assert Rates(name="tbill").references() == pytest.approx({
        "reference/vasicek_nll": 1.0447,
        "reference/cir_nll": 0.8221,
        "reference/brennan_schwartz_nll": 2.7439,
        "reference/random_walk_nll": 1.0240,
    }, abs=1e-3)  # fmt: skip


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_closed_form_is_the_greatest_likelihood(power: int) -> None:
    x = Rates(name="tbill").values()[:60].numpy()

    def nll(p: np.ndarray) -> float:
        variance = np.exp(p[2]) * np.maximum(x[:-1], FLOOR) ** power
        error = np.diff(x) - p[0] - p[1] * x[:-1]
        return 0.5 * float(np.mean(error**2 / variance + np.log(2 * math.pi * variance)))

    best = minimize(nll, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000})
    values = torch.from_numpy(x)
    assert transition_nll(values, values, power) == pytest.approx(best.fun, abs=1e-8)


def test_a_random_walk_has_the_mean_square_as_variance() -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    assert transition_nll(x, x, 0, drift=False) == pytest.approx(0.5 * (1 + math.log(2 * math.pi * 2.0)))


def test_pairs_are_split_in_time_and_validated_at_random() -> None:
    data = Rates(name="tbill", standardise=False)
    values, known = data.values(), int(0.7 * 203)
    assert len(data.train.index) + len(data.val.index) == known - 1 and len(data.test.index) == 203 - known
    torch.testing.assert_close(data.test.ys[:, 0, 0].double(), values[known - 1 : -1], rtol=1e-6, atol=0)
    torch.testing.assert_close(data.test.ys[:, 1, 0].double(), values[known:], rtol=1e-6, atol=0)
    assert data.train.ts.unique().tolist() == [0.0, 1.0]
    assert data.train.seen[:, 0].all() and data.train.scored[:, 1].all()
    later = data.val.ys[:, 0, 0].mean() - data.train.ys[:, 0, 0].mean()
    assert later.abs() < 1.5  # of rates that rose from 2 to 14 in the course of training


def test_the_spread_is_a_difference_of_columns(tmp_path: Path) -> None:
    data = Rates(path=spreads(tmp_path), standardise=False)
    torch.testing.assert_close(data.values()[:4], torch.tensor([0.5, 0.61, 0.72, 0.53], dtype=torch.float64))
    assert data.spec.channels == ("rate",) and set(data.references()) == set(Rates(name="tbill").references())


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected data.name spread or tbill, got 'libor'"):
        Rates(name="libor")
    with pytest.raises(ValueError, match="expected a column 'tbilrate'"):
        Rates(name="tbill", path=spreads(tmp_path)).values()
    (tmp_path / "rates.csv").write_text("year,tbilrate\n1959,2.8\n1960,\n")
    with pytest.raises(ValueError, match="rates.csv: line 3, column 'tbilrate': expected a number, got none"):
        Rates(name="tbill", path=tmp_path / "rates.csv").values()
    with pytest.raises(MissingData, match="run: pip install statsmodels"):
        Rates(name="tbill", path=tmp_path / "no.csv").setup()
    monkeypatch.setattr("ndeflow.data.notices.find_spec", lambda name: None)
    with pytest.raises(MissingData, match="run: pip install --no-deps arch==8.0.0"):
        Rates().setup()
