"""Latent models of series, trained by a bound of the likelihood, judged by that of the values held back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from ndeflow import plots
from ndeflow.contracts import Batch, Decay, GaussianOutput, Output, Regularizer
from ndeflow.metrics import Weighted, gaussian_nll
from ndeflow.models.latent import LatentModel
from ndeflow.tasks.base import Optimizer, Scheduler, Task
from ndeflow.tasks.losses import rmse

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
class Variational(Task):
    """Variational inference: the negative evidence lower bound, a value, of all observed values of a series.

    loss = -sum over rows (E_q sum log N(y; mean, std^2) - kl_weight KL(q || p)) / (number of observed values), in
    the model's units; E_q is the mean over draws. The posterior q reads the seen values alone, and with weight 1 the
    bound holds all the same, also for the values that it may not see. kl_weight: a number, or a `Decay` such as
    `LinearWarmup`, of training steps; evaluation takes 1. Li et al. 2020, section 5; Rubanova et al. 2019.

    Metrics, of the values that the model may not see: log_likelihood, of a value, in nats of the data's own units;
    coverage90, the share within the central 90 % of the predictive distribution; rmse, of its mean; and kl, of a row.
    The predictive distribution of a value is the mixture over draws of q's paths, (1/S) sum_s N(mean_s, std^2). Its
    log-likelihood is no bound of log p(unseen | seen) but a score of the forecast itself, value by value, and with few
    draws too low, never too high, in expectation.
    """

    def __init__(
        self,
        model: LatentModel,
        optimizer: Optimizer,
        *,
        kl_weight: float | Decay = 1.0,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, regularizers=regularizers, scheduler=scheduler, seed=seed)
        self.kl_weight = kl_weight
        self._kl_weight = 1.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        given = self.kl_weight
        self._kl_weight = given.at(self.progress) if isinstance(given, Decay) else float(given)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        found = gaussian(output)
        nll = gaussian_nll(found.mean, found.std, batch.ys)
        expected = torch.where(batch.mask, nll, 0.0).sum() / len(nll)
        weight = self._kl_weight if self.training else 1.0
        return (expected + weight * divergence(found).sum()) / batch.mask.sum().clamp(min=1)

    def weight(self, batch: Batch) -> Tensor:
        return batch.mask.sum()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        found, weights = gaussian(output), batch.scored.to(batch.ys.dtype)
        unit = found.std.new_tensor(self.spec.std).log()
        return {
            "log_likelihood": Weighted(mixture_log_density(found, batch.ys) - unit, weights),
            "coverage90": Weighted(covered(found, batch.ys, 0.9), weights),
            "kl": divergence(found),
            **rmse(Output(found.mean, draws=True), batch.ys, weights, self.spec),
        }

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        made = {"predictions": plots.predictions(batch, output.prediction, self.spec, draws=output.draws)}
        if output.draws:
            made["calibration"] = plots.calibration(output.prediction, batch.ys, batch.scored)
        return made


def gaussian(output: Output) -> GaussianOutput:
    """The output itself; raises ValueError where it is not that of a latent model."""
    if not isinstance(output, GaussianOutput):
        raise ValueError(
            f"expected a latent model's GaussianOutput, got {type(output).__name__}; use model=latent_sde or "
            "model=latent_ode, or task=forecasting"
        )
    return output


def divergence(output: GaussianOutput) -> Tensor:
    """The divergence (B,) of the posterior; 0 where the model gives none."""
    return output.mean.new_zeros(output.mean.shape[1]) if output.kl is None else output.kl


def mixture_log_density(output: GaussianOutput, ys: Tensor) -> Tensor:
    """log (1/S) sum_s N(y; mean_s, std^2), (B, T, C), of ys (B, T, C), in nats."""
    logp = -gaussian_nll(output.mean, output.std, ys)
    return logp.logsumexp(dim=0) - math.log(len(logp))


def covered(output: GaussianOutput, ys: Tensor, level: float) -> Tensor:
    """1 where a value lies in the central interval of the mixture with probability `level`, else 0: (B, T, C).

    By the mixture's distribution function (1/S) sum_s Phi((y - mean_s) / std), without the noise of its draws.
    """
    below = torch.special.ndtr((ys - output.mean) / output.std).mean(dim=0)
    return ((below - 0.5).abs() <= level / 2).to(ys.dtype)
