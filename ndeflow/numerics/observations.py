"""Observations as paths take them: channels of time and counts, and values in place of missing ones."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(ts: Tensor, xs: Tensor, mask: Tensor, *, counts: bool = False) -> tuple[Tensor, Tensor]:
    """Values and mask of the channels of a control path: time, the C channels and, with `counts`, their counts.

    A count is log(1 + n) with n the number of a channel's observations up to and including the time (the
    observational intensity of Kidger et al. 2020, on a logarithmic scale): it says where values are
    missing. ts: (T,) or (B, T). xs, mask: (B, T, C). Returns (B, T, 1 + C) or (B, T, 1 + 2 C), twice.
    """
    time = ts.to(xs.dtype).expand(xs.shape[:2]).unsqueeze(-1)
    channels = [time, xs]
    if counts:
        channels.append(mask.cumsum(dim=1).to(xs.dtype).log1p())
    known = torch.ones_like(mask)
    return torch.cat(channels, dim=-1), torch.cat([known[..., :1], mask, *[known] * counts], dim=-1)


def filled(ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> Tensor:
    """xs (B, T, C) with missing values interpolated linearly in time between each channel's own observations.

    Before a channel's first observation its first value, after the last its last, 0 where it has none. What stands
    in xs where mask is False is never read. Arguments and errors as in `Linear.through`.
    """
    mask = checked(ts, xs, mask)
    before, after = _neighbours(mask)
    xs = torch.where(mask, xs, 0.0)
    times = ts.expand(xs.shape[:2]).unsqueeze(-1).expand_as(xs)
    start, end = times.gather(1, before), times.gather(1, after)
    gap = end - start
    weight = ((times - start) / torch.where(gap > 0, gap, 1.0)).clamp(0, 1).to(xs.dtype)
    low, high = xs.gather(1, before), xs.gather(1, after)
    return torch.where(mask, xs, low + weight * (high - low))


def held(xs: Tensor, mask: Tensor) -> Tensor:
    """xs (B, T, C) with missing values filled with the channel's last one before them, 0 before its first."""
    before = _last(mask)
    return torch.where(before < 0, 0.0, torch.where(mask, xs, 0.0).gather(1, before.clamp(min=0)))


def checked(ts: Tensor, xs: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, where there is none that of the values that are not NaN; raises ValueError as `Linear.through` says."""
    mask = ~xs.isnan() if mask is None else mask
    if xs.dim() != 3 or xs.shape[1] < 2 or not xs.is_floating_point():
        raise ValueError(f"expected real xs (B, T, C) at two times or more, got {tuple(xs.shape)}, {xs.dtype}")
    if ts.shape not in (xs.shape[:2], xs.shape[1:2]):
        raise ValueError(f"expected ts (T,) or (B, T) for xs {tuple(xs.shape)}, got {tuple(ts.shape)}")
    if mask.shape != xs.shape or mask.dtype != torch.bool:
        raise ValueError(f"expected a bool mask of shape {tuple(xs.shape)}, got {tuple(mask.shape)}, {mask.dtype}")
    if bool((ts.diff(dim=-1) < 0).any()):
        raise ValueError("expected nondecreasing ts, got decreasing ones; sort the observations by time")
    return mask


def _neighbours(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the last observation at or before each time and of the first at or after it, (B, T, C) int64.

    Where there is none on one side, that of the other side; 0 where a channel has none at all.
    """
    size = mask.shape[1]
    before = _last(mask)
    after = torch.where(mask, _places(mask), size).flip(1).cummin(dim=1).values.flip(1)
    low = torch.where(before < 0, after, before)
    high = torch.where(after == size, before, after)
    return low.clamp(0, size - 1), high.clamp(0, size - 1)


def _last(mask: Tensor) -> Tensor:
    """The place of the last observation at or before each time, (B, T, C) int64; -1 where there is none."""
    return torch.where(mask, _places(mask), -1).cummax(dim=1).values


def _places(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device)[:, None]
