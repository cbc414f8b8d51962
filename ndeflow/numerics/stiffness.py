"""The estimate of stiffness that a step gives: how much its rates differ at two of its points, for their distance."""

from __future__ import annotations

import torch
from torch import Tensor

from ndeflow.numerics.norms import stacked_norms


def floor(dtype: torch.dtype) -> float:
    """The relative difference of two points below which they are called equal: far above rounding."""
    return torch.finfo(dtype).eps ** (2 / 3)


def quotient(rise: Tensor, run: Tensor, rate: Tensor, point: Tensor) -> Tensor:
    """|rise| / |run| of each row, each norm with a floor of eps^(2/3) |rate| and eps^(2/3) |point|: (B,).

    rise: the difference of two rates. run: of the points they were found at. rate, point: one of either. All (B, ...).
    At the floors, constants for autograd, it is |rate| / |point|; where all four are 0, nearly 0.
    """
    tiny = torch.finfo(rise.dtype).tiny
    floors = stacked_norms(rate.detach(), point.detach()) * floor(rise.dtype) + tiny
    up, along = torch.hypot(stacked_norms(rise, run), floors).unbind()
    return up / (along + tiny**0.5)
