"""Densities of points, fitted by maximum likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from ndeflow import plots
from ndeflow.contracts import Batch, Output
from ndeflow.metrics import Weighted
from ndeflow.models.flow import NormalizingFlow
from ndeflow.tasks.base import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 10_000  # in a figure


@final
class DensityEstimation(Task):
    """Maximum likelihood: the mean over rows of -log p(x), in nats of the data's units.

    Metrics: nll, the same, and bits_per_dimension, nll / (C ln 2) of C channels, of a continuous density: it may be
    negative. `reference/nll`, where the data know their density, is what no model can be better than but by chance.
    """

    model: NormalizingFlow

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return self._nll(output).mean()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        nll = self._nll(output)
        return {"nll": nll, "bits_per_dimension": nll / (batch.ys.shape[-1] * math.log(2))}

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        """Of two channels: data, samples and the density itself."""
        if batch.ys.shape[-1] != 2:
            return {}
        samples = self.model.sample(SAMPLES)
        clouds = {"data": batch.ys[:, 0], "samples of the model": samples}
        return {
            "density": plots.points(
                {name: self.spec.to_data_units(x) for name, x in clouds.items()},
                densities={"density of the model": self._density},
            )
        }

    def _nll(self, output: Output) -> Tensor:
        if output.prediction.dim() != 1:
            raise ValueError(
                f"expected log-densities (B,) of the model, got a prediction {tuple(output.prediction.shape)}; use "
                "model=normalizing_flow"
            )
        return self._log_unit(output.prediction) - output.prediction

    def _log_unit(self, like: Tensor) -> Tensor:
        """The logarithm of the volume, in the data's units, of a unit cube in the model's."""
        return like.new_tensor(self.spec.std).log().sum()

    def _density(self, x: Tensor) -> Tensor:
        """p (N,) at x (N, C), both in the data's units."""
        like = next(self.model.parameters())
        z = self.spec.to_model_units(x.to(like))
        return torch.exp(self.model.log_density(z) - self._log_unit(z))
