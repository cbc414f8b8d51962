"""What a path knows of the future, and what the solution of an equation that it drives knows."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import ControlPath
from ndeflow.numerics.solve import solve
from tests.numerics.cdes import HIDDEN, ROWS, TIMES, Response, drive, irregular, values

SEEN = 3  # what comes at place SEEN and later is the future


class Known(NamedTuple):
    """The path at some of its times, and the states that it drives an equation to at observations."""

    values: Tensor
    slopes: Tensor
    states: Tensor


def read(path: ControlPath, last: int, observed: int, solver: FixedRungeKutta | RungeKutta) -> Known:
    """All up to the path's knot number `last`, and states up to an observation."""
    knots = path.knots.expand(ROWS, -1)
    inside = [torch.lerp(knots[:, k : k + 1], knots[:, k + 1 : k + 2], f) for k in range(last) for f in (0.3, 0.9, 1.0)]
    y0, ts = torch.ones(ROWS, HIDDEN, dtype=torch.float64), path.at_observations()[..., : observed + 1]
    states = solve(Controlled(Response()), y0, ts, solver=solver, context=path).ys
    return Known(*(torch.stack([f(t) for t in inside]) for f in (path.value, path.derivative)), states.detach())


def futures(kind: str, complete: bool, new_times: bool = False) -> list[ControlPath]:
    """Two paths through the same past; `complete`: the last observations of the past miss no channel."""
    found, ts = [], irregular(True)
    for seed in (1, 2):
        xs, mask = values()
        other, others = values(seed)
        xs[:, SEEN:], mask[:, SEEN:] = other[:, SEEN:], others[:, SEEN:]
        if complete:
            mask[:, SEEN - 1] = True
        if new_times:
            ts = torch.cat([ts[:, :SEEN], ts[:, SEEN - 1 : SEEN] + irregular(True, seed)[:, : TIMES - SEEN]], dim=1)
        found.append(drive(kind, ts, xs, mask))
    return found


@pytest.mark.parametrize("solver", [FixedRungeKutta("rk4", 2), RungeKutta("bosh3", batching="per_sample")], ids=str)
@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_paths_that_look_ahead_to_the_next_observation_know_no_more(kind, solver):
    """Up to the last time of the past, at which all channels are observed."""
    one, two = (read(path, SEEN - 1, SEEN - 1, solver) for path in futures(kind, complete=True))
    assert all(map(torch.equal, one, two))
    one, two = (read(path, SEEN, SEEN, solver) for path in futures(kind, complete=True))
    assert not any(map(torch.equal, one, two))


@pytest.mark.parametrize("solver", [FixedRungeKutta("rk4", 2), RungeKutta("bosh3", batching="per_sample")], ids=str)
@pytest.mark.parametrize("new_times", [False, True])
def test_a_rectilinear_path_knows_nothing_of_the_future(solver, new_times):
    """Missing values and the times of what comes included; values that are not yet read not even at their own time."""
    last = 2 * (SEEN - 1) + (not new_times)
    one, two = (read(path, last, SEEN - 1, solver) for path in futures("rectilinear", False, new_times))
    assert all(map(torch.equal, one, two))
    one, two = (read(path, last + 1, SEEN, solver) for path in futures("rectilinear", False, new_times))
    assert not any(map(torch.equal, one, two))


def test_a_natural_cubic_knows_the_future_from_its_start():
    one, two = (read(path, 1, 1, FixedRungeKutta("rk4", 2)) for path in futures("natural_cubic", complete=True))
    assert all(((a - b).abs().amax(dim=-1) > 1e-6)[..., :1].all() for a, b in zip(one.slopes, two.slopes, strict=True))
    assert (one.states[:, 1] - two.states[:, 1]).abs().max() > 1e-6
