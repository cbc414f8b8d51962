"""Natural cubic splines through irregular, partly missing observations, all channels at once."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from ndeflow.numerics.observations import checked, filled
from ndeflow.numerics.paths import Piecewise, by_piece

SWEEPS = 6  # couplings are at most 1/2 and are squared by each: 2^-64, below rounding


@final
class NaturalCubic(Piecewise):
    """Cubics, twice continuously differentiable, with X'' = 0 at both ends: smooth, but not causal.

    Every observation changes the whole path, which so knows the future. `Hermite` and `Linear` look ahead to the next
    observation alone, `Rectilinear` not at all. X'' = m at a channel's own observations, a distance h_j apart, solves
    h_{j-1} m_{j-1} + 2 (h_{j-1} + h_j) m_j + h_j m_{j+1} = 6 ((x_{j+1} - x_j) / h_j - (x_j - x_{j-1}) / h_{j-1}). An
    interval of length zero ends a spline and begins another. de Boor 1978, "A practical guide to splines", chapter 4.
    """

    smoothness = 2

    @classmethod
    def through(cls, ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> NaturalCubic:
        """The path through xs (B, T, C) at ts; arguments and errors as in `Linear.through`.

        Each channel's spline goes through its own observations; where its first or last value is missing the nearest
        one stands in. It is computed in the wider of the dtypes of ts and xs.
        """
        mask = checked(ts, xs, mask)
        values, known = filled(ts, xs, mask), mask.clone()
        known[:, 0] = known[:, -1] = True
        wide = torch.promote_types(ts.dtype, xs.dtype)
        times = ts.to(wide).expand(xs.shape[:2]).unsqueeze(-1).expand_as(xs)
        order = (~known).to(torch.uint8).argsort(dim=1, stable=True)
        own = times.gather(1, order)
        cubics = _cubics(own, values.to(wide).gather(1, order), known)
        place = known.cumsum(dim=1)[:, :-1] - 1
        shifted = _shifted([c.gather(1, place) for c in cubics], times[:, :-1] - own.gather(1, place))
        still = ts.diff(dim=-1).unsqueeze(-1) == 0
        value, *slopes = (c.to(xs.dtype) for c in shifted)
        return cls(ts, by_piece(value, *(torch.where(still, 0.0, c) for c in slopes)))


def _cubics(times: Tensor, xs: Tensor, known: Tensor) -> list[Tensor]:
    """Coefficients, lowest power first, of the spline between own observations: each (B, T - 1, C).

    times, xs: (B, T, C), own observations first; what comes after them is not looked at.
    """
    width = times.diff(dim=1)
    moving = width > 0
    width, bends = torch.where(moving, width, 1.0), _bends(times, xs, known.sum(dim=1, keepdim=True))
    start, end = bends[:, :-1], bends[:, 1:]
    rise = torch.where(moving, xs.diff(dim=1), 0.0) / width
    return [xs[:, :-1], rise - width * (2 * start + end) / 6, start / 2, (end - start) / (6 * width)]


def _bends(times: Tensor, xs: Tensor, count: Tensor) -> Tensor:
    """X'' (B, T, C) at the own observations of each channel, the first `count`."""
    width, rise = times.diff(dim=1), xs.diff(dim=1)
    place = torch.arange(1, times.shape[1] - 1, device=times.device)[:, None]
    inner = (width[:, :-1] > 0) & (width[:, 1:] > 0) & (place < count - 1)
    before, after = (torch.where(inner, w, 1.0) for w in (width[:, :-1], width[:, 1:]))
    span = before + after
    lower, upper = (torch.where(inner, w / (2 * span), 0.0) for w in (before, after))
    right = torch.where(inner, 3 * (rise[:, 1:] / after - rise[:, :-1] / before) / span, 0.0)
    return pad(_tridiagonal(lower, upper, right), (0, 0, 1, 1))


def _tridiagonal(lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """x (B, N, C) with lower_i x_{i-1} + x_i + upper_i x_{i+1} = right_i, where lower + upper is at most 1/2.

    Parallel cyclic reduction: each sweep couples rows twice as far apart. Hockney, Jesshope 1981, "Parallel computers".
    """
    for stride in (2**sweep for sweep in range(SWEEPS)):
        if stride >= right.shape[1]:
            break
        lower0, upper0, right0 = (pad(x[:, :-stride], (0, 0, stride, 0)) for x in (lower, upper, right))
        lower1, upper1, right1 = (pad(x[:, stride:], (0, 0, 0, stride)) for x in (lower, upper, right))
        pivot = 1 - lower * upper0 - upper * lower1
        right = (right - lower * right0 - upper * right1) / pivot
        lower, upper = -lower * lower0 / pivot, -upper * upper1 / pivot
    return right


def _shifted(cubic: list[Tensor], by: Tensor) -> list[Tensor]:
    """The coefficients of a cubic in powers of its argument less `by`."""
    a, b, c, d = cubic
    return [a + by * (b + by * (c + by * d)), b + by * (2 * c + 3 * by * d), c + 3 * by * d, d]
