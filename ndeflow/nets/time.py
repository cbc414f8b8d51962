"""Time as an input of networks."""

from __future__ import annotations

import torch
from torch import Tensor


def with_time(t: Tensor, y: Tensor) -> Tensor:
    """y with time as one more channel, first in the last dimension.

    t: 0-dim, or (B, 1, ..., 1) with as many dimensions as y. y: (B, ..., C). Returns (B, ..., 1 + C).
    """
    return torch.cat([t.to(y.dtype).expand(*y.shape[:-1], 1), y], dim=-1)
