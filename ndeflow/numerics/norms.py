"""Norms of each row of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norms over all but the first dimension, with gradient 0 where they are 0: (B,)."""
    return torch.linalg.vector_norm(x if x.dim() == 2 else x.reshape(x.shape[0], -1), dim=1)


def stacked_norms(*xs: Tensor) -> Tensor:
    """`row_norms` of several tensors of one shape: (len(xs), B)."""
    stack = torch.stack(xs)
    return torch.linalg.vector_norm(stack if stack.dim() == 3 else stack.reshape(*stack.shape[:2], -1), dim=2)
