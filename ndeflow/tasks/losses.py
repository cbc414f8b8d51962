"""How far a predicted series is from the observed one: losses and the metrics that go with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ndeflow.contracts import DataSpec, Gaussian, Output
from ndeflow.metrics import Weighted, crps, gaussian_nll
from ndeflow.numerics.draws import coverage
from ndeflow.numerics.segments import wide


class SeriesLoss(ABC):
    """A loss over the marked values of a series.

    `__call__`: output.prediction (B, T, C), or (S, B, T, C) where `output.draws`; ys (B, T, C) in model units;
    weights (B, T, C), 0 or 1 -> scalar. `metrics`: the same in the data's own units, unless named z/...
    """

    @abstractmethod
    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor: ...

    @abstractmethod
    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]: ...


def average(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of `values` where `weights` is 1; 0 where nothing is marked. A masked value never enters."""
    kept = torch.where(weights > 0, values, torch.zeros_like(values))
    return kept.sum() / weights.sum().clamp(min=1)


def point(output: Output) -> Tensor:
    """The point forecast (B, T, C): the prediction, or the mean of its draws."""
    return output.prediction.mean(dim=0) if output.draws else output.prediction


def rmse(output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
    """Root mean squared errors of the point forecast, in data units and in units of the standardised data."""
    error = wide(point(output) - ys)  # whose square in the data's own units may overflow
    scale = error.new_tensor(spec.std)
    return {
        "rmse": Weighted((error * scale).square(), weights, root=True),
        "z/rmse": Weighted(error.square(), weights, root=True),
    }


@final
@dataclass(frozen=True)
class SquaredError(SeriesLoss):
    """Mean squared error in model units."""

    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        return average((point(output) - ys).square(), weights)

    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
        return rmse(output, ys, weights, spec)


@final
@dataclass(frozen=True)
class LogSquaredError(SeriesLoss):
    """Mean squared error of the logarithms of positive quantities in data units: a relative error."""

    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        return average(self._squares(output, ys, weights, spec), weights)

    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
        squares = self._squares(output, ys, weights, spec)
        return {"log_rmse": Weighted(squares, weights, root=True), **rmse(output, ys, weights, spec)}

    def _squares(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        predicted, observed = spec.to_data_units(point(output)), spec.to_data_units(ys)
        observed = torch.where(weights > 0, observed, torch.ones_like(observed))
        return (predicted.log() - observed.log()).square()


@final
@dataclass(frozen=True)
class CRPS(SeriesLoss):
    """Continuous ranked probability score of the draws, a proper score: small only for calibrated, sharp forecasts.

    The fair estimator mean |x_s - y| - sum_{s<r} |x_s - x_r| / (S (S - 1)) (Gneiting & Raftery 2007, eq. 21;
    Ferro 2014), in model units. Needs at least two draws.
    """

    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        return average(crps(self._draws(output), ys), weights)

    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
        draws = self._draws(output)
        scale = ys.new_tensor(spec.std)
        return {
            "crps": Weighted(crps(draws, ys) * scale, weights),
            "coverage90": Weighted(coverage(draws, ys, level=0.9), weights),
            **rmse(output, ys, weights, spec),
        }

    def _draws(self, output: Output) -> Tensor:
        if not output.draws:
            raise ValueError(
                "expected at least two draws for CRPS, got one prediction; set model.draws and model.eval_draws "
                "to 2 or more, or use criterion=squared_error"
            )
        return output.prediction


Z90 = 1.6448536  # a standard normal is within it with probability 0.9


@final
@dataclass(frozen=True)
class GaussianNLL(SeriesLoss):
    """-log N(y; mean, std^2) of the normal distributions that a model gives, in nats, in model units.

    A quasi-likelihood where the true distribution is not normal: proper for mean and variance all the same. Metrics:
    nll is of densities in the data's units. Raises ValueError for a model that gives no `Gaussian`.
    """

    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        return average(self._nll(output, ys), weights)

    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
        nll = self._nll(output, ys) + ys.new_tensor(spec.std).log()
        inside = (ys - output.prediction).abs() <= Z90 * self._std(output)
        return {
            "nll": Weighted(nll, weights),
            "coverage90": Weighted(inside.to(ys.dtype), weights),
            **rmse(output, ys, weights, spec),
        }

    def _nll(self, output: Output, ys: Tensor) -> Tensor:
        return gaussian_nll(output.prediction, self._std(output), ys)

    def _std(self, output: Output) -> Tensor:
        if not isinstance(output, Gaussian):
            raise ValueError(
                "expected normal distributions for GaussianNLL, got a prediction without a standard deviation; use "
                "model=scalar_diffusion, or criterion=squared_error"
            )
        return output.std
