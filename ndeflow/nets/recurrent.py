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
        gaps = torch.diff(ts, dim=1, prepend=ts[:, :1]).to(ys.dtype)
        values = torch.where(seen, ys, torch.zeros_like(ys))
        features = torch.cat([values, seen.to(ys.dtype), gaps.unsqueeze(-1)], dim=-1)
        if self.reverse:
            return self.gru(features.flip(1))[0][:, -1]
        outputs = self.gru(features)[0]
        last = last_seen(seen)
        return outputs[torch.arange(len(outputs), device=outputs.device), last]


def last_seen(seen: Tensor) -> Tensor:
    """The last time at which any channel is seen, (B,) from (B, T, C); 0 where nothing is."""
    any_channel = seen.any(dim=-1)
    places = torch.arange(seen.shape[1], device=seen.device)
    return (places * any_channel).amax(dim=1)
