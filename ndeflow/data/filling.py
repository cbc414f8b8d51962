"""Hidden values filled in from the seen ones of the same channel: what a model that fills them in must beat."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec
from ndeflow.metrics import gaussian_nll


def linear_scores(train: Batch, test: Batch, spec: DataSpec) -> dict[str, float]:
    """RMSE and log-likelihood (nats a value), both in the data's units, of linear interpolation on the scored values.

    Each value is Gaussian around its interpolation, with its channel's mean squared error on the training rows.
    """
    error, scale = interpolated(test) - test.ys, test.ys.new_tensor(spec.std)
    square, count = (interpolated(train) - train.ys).square(), train.scored.sum(dim=(0, 1))
    std = (torch.where(train.scored, square, 0.0).sum(dim=(0, 1)) / count).sqrt()
    nll = (gaussian_nll(torch.zeros_like(error), std, error) + scale.log())[test.scored]
    rmse = math.sqrt((error * scale)[test.scored].square().mean())
    return {"reference/linear_rmse": rmse, "reference/linear_log_likelihood": -float(nll.mean())}


def interpolated(batch: Batch) -> Tensor:
    """(B, T, C), of each row and channel its seen values, between them linear in time, beyond them constant.

    0, which is the mean where values are standardised, where nothing of a channel is seen.
    """
    filled = torch.zeros_like(batch.ys)
    for row, channel in batch.seen.any(dim=1).nonzero().tolist():
        seen = batch.seen[row, :, channel].numpy()
        ts, ys = batch.ts[row].numpy(), batch.ys[row, :, channel].numpy()
        filled[row, :, channel] = torch.from_numpy(np.interp(ts, ts[seen], ys[seen]))
    return filled
