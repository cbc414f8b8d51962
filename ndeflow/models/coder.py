"""The ends of a latent model of series: what it infers from a series, and what series it expects of a latent path."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.nets.mlp import MLP
from ndeflow.nets.recurrent import HistoryEncoder


class Inference(NamedTuple):
    """What an encoder makes of the seen values of B series.

    mean, std: (B, d), of q(z0), a Gaussian with independent components. codes: (B, T, H), at each time what is seen
    from it on.
    """

    mean: Tensor
    std: Tensor
    codes: Tensor


@final
class SeriesCoder(nn.Module):
    """The encoder q(z0 | seen), the prior p(z0) and the decoder p(y | z).

    The encoder is a GRU over the seen values from the last time to the first. p(z0) is a learned Gaussian with
    independent components; p(y | z) is Gaussian around a network, with a learned standard deviation for each channel,
    the same at all times: a fixed one decides beforehand how closely paths are to follow the data.
    """

    def __init__(self, channels: int, *, inputs: int, latent: int, hidden: int, width: int) -> None:
        super().__init__()
        self.history = HistoryEncoder(channels, hidden, reverse=True)
        self.start = nn.Linear(hidden + inputs, 2 * latent)
        self.prior_mean, self.prior_log_std = (nn.Parameter(torch.zeros(latent)) for _ in range(2))
        self.decoder = MLP(latent, channels, width=width, depth=1)
        self.log_std = nn.Parameter(torch.full((channels,), -1.0))

    def forward(self, batch: Batch) -> Inference:
        codes = self.history.codes(batch.ts, batch.ys, batch.seen)
        known = codes[:, 0] if batch.inputs is None else torch.cat([codes[:, 0], batch.inputs], dim=-1)
        mean, log_std = self.start(known).chunk(2, dim=-1)
        return Inference(mean, log_std.exp(), codes)

    def start_kl(self, posterior: Inference) -> Tensor:
        """(B,): the divergence of q(z0) from p(z0)."""
        return gaussian_kl(posterior.mean, posterior.std, self.prior_mean, self.prior_log_std.exp())


def gaussian_kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)), summed over the last dimension, in nats.

    sum of log(prior_std / std) + (std^2 + (mean - prior_mean)^2) / (2 prior_std^2) - 1/2.
    """
    scaled = (std.square() + (mean - prior_mean).square()) / prior_std.square()
    return ((scaled - 1) / 2 - (std / prior_std).log()).sum(dim=-1)
