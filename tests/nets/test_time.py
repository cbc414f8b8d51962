"""Time as a channel."""

from __future__ import annotations

import pytest
import torch

from ndeflow.nets.time import with_time


@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 2)])
def test_time_is_the_first_channel_for_both_kinds_of_t(shape):
    y = torch.randn(shape)
    shared = with_time(torch.tensor(0.5, dtype=torch.float64), y)
    assert shared.dtype == y.dtype and shared[..., 1:].equal(y) and (shared[..., 0] == 0.5).all()
    own = torch.rand(3, *[1] * (y.dim() - 1))
    assert with_time(own, y)[..., :1].equal(own.expand(*y.shape[:-1], 1))
