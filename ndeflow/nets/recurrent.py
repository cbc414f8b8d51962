"""Recurrent encoders of irregular series."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HistoryEncoder(nn.Module):
    """A GRU over the seen part of a series, read at its last seen time.

    The GRU's input at a time is (values, seen flags, gap since the time before), 2 C + 1 features; unseen values
    enter as 0. With `reverse` it runs from the last time to the first and is read there.
    """

    def __init__(self, channels: int, hidden: int, *, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        self.gru = nn.GRU(2 * channels + 1, hidden, batch_first=True)

    def forward(self, ts: Tensor, ys: Tensor, seen: Tensor) -> Tensor:
        """ts (B, T), ys (B, T, C), seen (B, T, C) bool -> (B, hidden)."""
        codes = self.codes(ts, ys, seen)
        if self.reverse:
            return codes[:, 0]
        return codes[torch.arange(len(codes), device=codes.device), last_seen(seen)]

    def codes(self, ts: Tensor, ys: Tensor, seen: Tensor) -> Tensor:
        """The GRU's output at every time, (B, T, hidden): of what lies up to it, with `reverse` from it on."""
        gaps = torch.diff(ts, dim=1, prepend=ts[:, :1]).to(ys.dtype)
        values = torch.where(seen, ys, torch.zeros_like(ys))
        features = torch.cat([values, seen.to(ys.dtype), gaps.unsqueeze(-1)], dim=-1)
        return self.gru(features.flip(1))[0].flip(1) if self.reverse else self.gru(features)[0]


def last_seen(seen: Tensor) -> Tensor:
    """The last time at which any channel is seen, (B,) from (B, T, C); 0 where nothing is."""
    any_channel = seen.any(dim=-1)
    places = torch.arange(seen.shape[1], device=seen.device)
    return (places * any_channel).amax(dim=1)
