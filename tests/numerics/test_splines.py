"""Natural cubic splines against scipy, with missing values, repeated times and long series."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from ndeflow.numerics.splines import NaturalCubic

ROWS, CHANNELS = 3, 2


def observations(times: int, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Irregular times (B, T), values and mask (B, T, C)."""
    torch.manual_seed(0)
    ts = torch.rand(ROWS, times, dtype=torch.float64).add(0.01).cumsum(dim=1)
    xs = torch.randn(ROWS, times, CHANNELS, dtype=torch.float64)
    return ts, xs, torch.rand(xs.shape) < share


def read(path: NaturalCubic, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Times (B, T - 1) at a fraction of each interval; values and slopes there, (B, T - 1, C)."""
    knots = path.knots.expand(ROWS, -1)
    times = torch.lerp(knots[:, :-1], knots[:, 1:], fraction)
    pieces = [(path.piece(k), times[:, k : k + 1]) for k in range(times.shape[1])]
    return times, torch.stack([p.value(t) for p, t in pieces], 1), torch.stack([p.derivative(t) for p, t in pieces], 1)


def splines(ts: Tensor, xs: Tensor, mask: Tensor) -> list[list[CubicSpline]]:
    """scipy's, for each row and channel: through its own observations, the nearest standing in for missing ends."""
    found = []
    for t, x, known in zip(ts.numpy(), xs.numpy(), mask.numpy(), strict=True):
        found.append([])
        for c in range(CHANNELS):
            own = np.flatnonzero(known[:, c])
            near = [own[0], *own[own % (len(t) - 1) != 0], own[-1]]
            places = [0, *near[1:-1], len(t) - 1]
            found[-1].append(CubicSpline(t[places], x[near, c], bc_type="natural"))
    return found


@pytest.mark.parametrize(("times", "share"), [(2, 1.0), (3, 1.0), (9, 1.0), (9, 0.6), (200, 1.0), (200, 0.3)])
def test_splines_are_scipys(times, share):
    ts, xs, mask = observations(times, share)
    path, wanted = NaturalCubic.through(ts, xs.masked_fill(~mask, torch.nan)), splines(ts, xs, mask)
    for fraction in (0.0, 0.3, 1.0):
        at, values, slopes = read(path, fraction)
        for b in range(ROWS):
            for c in range(CHANNELS):
                spline, t = wanted[b][c], at[b].numpy()
                np.testing.assert_allclose(values[b, :, c], spline(t), rtol=1e-10, atol=1e-10)
                np.testing.assert_allclose(slopes[b, :, c], spline(t, 1), rtol=1e-10, atol=1e-10 * abs(spline.c).max())


def test_single_precision_is_accurate_with_wide_times():
    ts, xs, mask = observations(50, 0.7)
    single, double = (NaturalCubic.through(ts, x, mask) for x in (xs.float(), xs.float().double()))
    for a, b in zip(read(single, 0.6)[1:], read(double, 0.6)[1:], strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-5)


def test_a_line_is_kept():
    ts, _, mask = observations(12, 0.5)
    path = NaturalCubic.through(
        ts, ts.unsqueeze(-1).expand(-1, -1, CHANNELS), mask.index_fill(1, torch.tensor([0, 11]), True)
    )
    at, values, slopes = read(path, 0.4)
    torch.testing.assert_close(values[..., 0], at)
    torch.testing.assert_close(slopes, torch.ones_like(slopes))


def test_a_repeated_time_ends_a_spline_and_begins_another():
    ts, xs, mask = observations(9)
    ts[:, 5] = ts[:, 4]
    whole, first, second = (NaturalCubic.through(ts[:, s], xs[:, s]) for s in (slice(9), slice(5), slice(5, 9)))
    _, values, slopes = read(whole, 0.3)
    for part, place in ((first, slice(4)), (second, slice(5, 8))):
        _, own_values, own_slopes = read(part, 0.3)
        torch.testing.assert_close(values[:, place], own_values)
        torch.testing.assert_close(slopes[:, place], own_slopes)
    assert torch.equal(values[:, 4], xs[:, 4]) and not slopes[:, 4].any()
    mask[:, 5, 0] = False  # the other channel alone is observed twice
    _, smooth, _ = read(NaturalCubic.through(ts, xs, mask), 0.3)
    once = [k for k in range(9) if k != 5]
    _, wanted, _ = read(NaturalCubic.through(ts[:, once], xs[:, once]), 0.3)
    torch.testing.assert_close(smooth[:, [0, 1, 2, 3, 5, 6, 7], 0], wanted[..., 0])
    torch.testing.assert_close(smooth[..., 1], values[..., 1])
