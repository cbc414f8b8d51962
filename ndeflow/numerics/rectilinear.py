"""The rectilinear control path: time goes on while values are held, then values jump while time stands still."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ndeflow.numerics.observations import checked, held
from ndeflow.numerics.paths import Piecewise, by_piece


@final
class Rectilinear(Piecewise):
    """Straight lines along which first time advances and then values jump: at no point is the future known.

    The path's parameter s is not time but counts observations: at s = i those up to number i, from 0, have been
    read. From i to i + 1/2 the first channel, time, goes from t_i to t_{i+1}; from i + 1/2 to i + 1 the others go from
    their values at t_i to those at t_{i+1}. knots: 0, 1/2, 1, ..., T - 1; where t_{i+1} = t_i two intervals of length
    zero. A solve runs in s and is saved at knots: solve(..., ts=path.at_observations()); a field gets s for t, and
    time as X's first channel; under `ByValue` rates are rates in s. Morrill, Kidger, Yang, Lyons 2022, "On the choice
    of interpolation scheme for neural CDEs".
    """

    smoothness = 0

    @classmethod
    def through(cls, ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> Rectilinear:
        """The path through xs (B, T, C), whose first channel is ts: (T,) or (B, T), as `augment` makes it.

        mask: as in `Linear.through`. A missing value is the channel's last one before it, 0 before its first. Raises
        ValueError as `Linear.through` does, and where the first channel is not time.
        """
        mask = checked(ts, xs, mask)
        _check_clock(ts, xs, mask)
        xs = held(xs, mask)
        later = torch.cat([xs[:, 1:, :1], xs[:, :-1, 1:]], dim=-1)
        corners = torch.stack([xs[:, :-1], later], dim=2).flatten(1, 2)
        moves = (ts.diff(dim=-1) > 0).repeat_interleave(2, dim=-1)
        rises = torch.cat([corners, xs[:, -1:]], dim=1).diff(dim=1)
        knots = torch.cat([torch.zeros_like(ts[..., :1]), (moves.to(ts.dtype) / 2).cumsum(dim=-1)], dim=-1)
        return cls(knots, by_piece(corners, torch.where(moves.unsqueeze(-1), 2 * rises, 0.0)))

    def at_observations(self) -> Tensor:
        """Every other knot, (T,) or (B, T); at the knot before, time is that of the observation, not yet read."""
        return self.knots[..., ::2]

    def check_times(self, ts: Tensor) -> None:
        """Raise ValueError unless all save times are knots."""
        within = (ts >= 0) & (ts <= self.knots[..., -1:])
        if not bool((within & ((2 * ts).frac() == 0)).all()):
            raise ValueError(
                "expected save times that are knots of the rectilinear path, whose parameter counts observations and "
                "is not time, got others; give ts=path.at_observations(), or some of its columns"
            )


def _check_clock(ts: Tensor, xs: Tensor, mask: Tensor) -> None:
    if not bool(((xs[..., 0] == ts.to(xs.dtype)) & mask[..., 0]).all()):
        raise ValueError(
            "expected time as the first channel of xs, observed everywhere, got something else; "
            "give Rectilinear.through(ts, *augment(ts, xs, mask))"
        )
