"""A loss of the law that draws have, not of each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ndeflow.contracts import DataSpec, Output
from ndeflow.metrics import Weighted, moments
from ndeflow.numerics.segments import wide
from ndeflow.tasks.losses import SeriesLoss, average


@final
@dataclass(frozen=True)
class MomentMatching(SeriesLoss):
    """Mean squared difference of the means over the rows of a batch, plus that of their variances, in model units.

    Of rows that are paths of one law, at the same times: predicted and observed paths are not paired. All draws count
    together. The mean over times and channels at which at least two rows are marked. For B rows and as many predicted
    paths the loss of the true law is not 0 but of the order of 1 / B. The metric `moments` is of a batch, in data
    units: the larger the batch, the closer to that of the laws. Pal, Ma, Shah, Rackauckas 2021, section 4.2.1.
    """

    def __call__(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> Tensor:
        return self._gap(output, ys, weights, torch.ones_like(ys[0, 0]))

    def metrics(self, output: Output, ys: Tensor, weights: Tensor, spec: DataSpec) -> dict[str, Weighted]:
        return {"moments": Weighted(self._gap(output, ys, weights, wide(ys).new_tensor(spec.std)))}

    def _gap(self, output: Output, ys: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
        predicted = output.prediction if output.draws else output.prediction[None]
        (mean, variance), (mean1, variance1) = moments(predicted, weights), moments(ys[None], weights)
        marked = (weights.sum(dim=0) > 1).to(ys.dtype)
        squares = (unit * (mean - mean1)).square() + (unit.square() * (variance - variance1)).square()
        return average(squares, marked)
