"""Printed records: what is read, what is scored, and the known equations' scores, fitted anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from ndeflow.data import Influenza, LynxHare


def test_lynx_and_hare_fit_and_forecast() -> None:
    data = LynxHare()
    assert data.spec.channels == ("hare", "lynx") and data.spec.std == (1.0, 1.0)
    assert data.train.ts.tolist() == [list(range(16))] and data.test.ts.tolist() == [list(range(21))]
    assert data.train.ys[0, 0].tolist() == pytest.approx([30.0, 4.0])
    assert data.test.ys[0, -1].tolist() == pytest.approx([24.7, 8.6])
    assert data.train.scored[0, :, 0].tolist() == [False] + [True] * 15
    assert data.test.scored[0, :, 0].tolist() == [False] * 16 + [True] * 5
    assert data.val.ys.equal(data.train.ys) and data.val.scored.equal(data.train.scored)


def test_settings_are_chosen_before_the_test_years() -> None:
    data = LynxHare(fit=11)
    assert data.train.ts.shape == (1, 11) and data.val.ts.shape == (1, 16)
    assert data.val.scored[0].nonzero()[:, 0].unique().tolist() == [11, 12, 13, 14, 15]
    assert data.test.scored.equal(data.val.scored)
    longer = LynxHare(fit=11, forecast=10)
    assert longer.val.ts.shape == (1, 16) and longer.test.ts.shape == (1, 21)


def test_influenza() -> None:
    data = Influenza()
    assert data.sizes["channels"] == 1 and data.train.ts.shape == (1, 7)
    assert data.test.scored[0, :, 0].tolist() == [False] * 7 + [True] * 7
    assert data.test.ys.max() == 298
    assert Influenza(fit=5, forecast=2).val.scored[0, :, 0].tolist() == [False] * 5 + [True] * 2


@pytest.mark.parametrize(("fit", "forecast"), [(1, 5), (16, 6), (16, 0)])
def test_parts_that_cannot_be(fit: int, forecast: int) -> None:
    with pytest.raises(ValueError, match="a sum of at most 21"):
        LynxHare(fit=fit, forecast=forecast)


@pytest.mark.parametrize(("fit", "forecast", "persistence"), [(16, 5, 1.077), (11, 10, 0.904)])
def test_lynx_and_hare_persistence(fit: int, forecast: int, persistence: float) -> None:
    references = LynxHare(fit=fit, forecast=forecast).references()
    assert references["reference/persistence_log_rmse"] == pytest.approx(persistence, abs=5e-4)


def fitted(model: Callable[[np.ndarray], np.ndarray], start: list[float], data: np.ndarray, fit: int) -> np.ndarray:
    """The model's path over all times, its parameters (exp of the unknowns) fitted to the first `fit`."""
    solution = least_squares(lambda p: (model(np.exp(p)) - data)[:fit].ravel(), np.log(start))
    return model(np.exp(solution.x))


def lotka_volterra(p: np.ndarray) -> np.ndarray:
    """Logarithms (21, 2)."""
    alpha, beta, gamma, delta = p[:4]
    path = solve_ivp(lambda t, u: [alpha - beta * np.exp(u[1]), delta * np.exp(u[0]) - gamma], (0, 20), np.log(p[4:]),
                     t_eval=np.arange(21), rtol=1e-7, atol=1e-7)  # fmt: skip
    return path.y.T


def sir(p: np.ndarray) -> np.ndarray:
    """Infected (14,) of 763."""
    beta, gamma, start = p
    path = solve_ivp(lambda t, u: [-beta * u[0] * u[1] / 763, beta * u[0] * u[1] / 763 - gamma * u[1]], (0, 13),
                     [763 - start, start], t_eval=np.arange(14), rtol=1e-7, atol=1e-7)  # fmt: skip
    return path.y[1]


@pytest.mark.parametrize("fit", [11, 16])
def test_lotka_volterra_scores(fit: int) -> None:
    logs = LynxHare().table.log().numpy()
    path = fitted(lotka_volterra, [0.55, 0.028, 0.84, 0.026, 30.0, 4.0], logs, fit)
    for (used, forecast), score in LynxHare.known.items():
        if used == fit:
            error = (path - logs)[fit : fit + forecast]
            assert float(np.sqrt((error**2).mean())) == pytest.approx(score, abs=1e-3)


def test_sir_score() -> None:
    beds = Influenza().table[:, 0].numpy()
    error = (fitted(sir, [1.8, 0.45, 3.0], beds, 7) - beds)[7:]
    references = Influenza().references()
    assert float(np.sqrt((error**2).mean())) == pytest.approx(references["reference/sir_rmse"], abs=0.1)
    assert references["reference/persistence_rmse"] == pytest.approx(183.2, abs=0.05)


def test_time_unit_and_units_of_data() -> None:
    data = LynxHare(time_scale=2.0)
    assert data.train.ts[0, -1] == 7.5
    torch.testing.assert_close(data.spec.to_data_units(data.train.ys), data.table[None, :16].float())
