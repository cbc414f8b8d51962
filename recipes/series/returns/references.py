"""GARCH(1, 1) with Student's t, fitted to the training returns and simulated: how far its paths are from the test's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import gammaln

from ndeflow.metrics import kolmogorov, lagged_correlation

BURN_IN = 500
LAGS = 10


class Garch(NamedTuple):
    """r_t = s_t e_t, s_t^2 = (1 - alpha - beta) variance + alpha r_{t-1}^2 + beta s_{t-1}^2.

    e is Student's t of `degrees`, of variance 1. Bollerslev 1987, "A conditionally heteroskedastic time series model
    for speculative prices and rates of return"; the stationary variance is that of the sample (variance targeting,
    Engle & Mezrich 1996): without it the likelihood is greatest where there is none.
    """

    variance: float
    alpha: float
    beta: float
    degrees: float

    @classmethod
    def from_free(cls, variance: float, free: np.ndarray) -> Garch:
        """From three real numbers: alpha, beta > 0 of sum below 1, degrees > 2."""
        weights = np.exp(free[:2])
        return cls(variance, *(weights / (1 + weights.sum())), 2 + np.exp(free[2]))

    @property
    def omega(self) -> float:
        return (1 - self.alpha - self.beta) * self.variance

    def nll(self, blocks: np.ndarray) -> float:
        """Mean negative log-likelihood of returns (N, T), each row's first variance the stationary one."""
        variance, total = np.full(len(blocks), self.variance), 0.0
        nu = self.degrees
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(np.pi * (nu - 2))
        for now in blocks.T:
            tail = 0.5 * (nu + 1) * np.log1p(now**2 / ((nu - 2) * variance))
            total += float(np.sum(0.5 * np.log(variance) + tail - constant))
            variance = self.omega + self.alpha * now**2 + self.beta * variance
        return total / blocks.size

    def simulate(self, rows: int, days: int, generator: np.random.Generator) -> np.ndarray:
        """Returns (rows, days) of the stationary process."""
        noise = generator.standard_t(self.degrees, (BURN_IN + days, rows)) * np.sqrt(1 - 2 / self.degrees)
        variance, found = np.full(rows, self.variance), []
        for e in noise:
            now = np.sqrt(variance) * e
            found.append(now)
            variance = self.omega + self.alpha * now**2 + self.beta * variance
        return np.stack(found[BURN_IN:], axis=1)


def fit(blocks: np.ndarray) -> Garch:
    """The greatest likelihood of returns (N, T)."""
    variance, start = float(np.mean(blocks**2)), np.array([1.0, 3.0, 1.5])
    options = {"maxiter": 4000, "xatol": 1e-5, "fatol": 1e-8}
    best = minimize(lambda x: Garch.from_free(variance, x).nll(blocks), start, method="Nelder-Mead", options=options)
    return Garch.from_free(variance, best.x)


def references(data, seed: int) -> dict[str, float]:
    """Distances as of the task's metrics, between as many simulated windows as there are test windows and these."""
    blocks = [block for block in data.blocks("train") if len(block) == 250]
    model, (rows, days) = fit(torch.stack(blocks).numpy()), data.test.ys.shape[:2]
    fake = torch.from_numpy(model.simulate(rows, days - 1, np.random.default_rng(seed))) / (days - 1) ** 0.5
    real = data.test.ys[..., 0].double().diff(dim=1)
    laws = [[lagged_correlation(x**power, x**2, min(LAGS, days - 2)) for x in (fake, real)] for power in (2, 1)]
    squares, leverage = (float((a - b).abs().mean()) for a, b in laws)
    marginal = float(kolmogorov(fake.flatten(), real.flatten()))
    return {"reference/garch_marginal": marginal, "reference/garch_squares": squares,
            "reference/garch_leverage": leverage}  # fmt: skip
