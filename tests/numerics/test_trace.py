"""What a solve leaves: estimates on the graph whoever reads them first, and no states behind them."""

from __future__ import annotations

import pickle
import weakref

import pytest
import torch

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solve import solve
from tests.problems import Net, start

TS = torch.tensor([0.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_estimates_first_read_without_gradients_have_them_all_the_same(adjoint, batching):
    field = Net()
    stats = solve(field, start(), TS, solver=RungeKutta(batching=batching), adjoint=adjoint).stats
    with torch.no_grad():
        assert stats.error is not None and stats.error.requires_grad
    stats.error.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in field.parameters() if p.dim() == 2)


@pytest.mark.usefixtures("uncollected")
def test_statistics_alone_keep_no_states():
    states: list[weakref.ref[torch.Tensor]] = []

    class Watched(Net):
        def forward(self, t, y):
            states.append(weakref.ref(y))
            return super().forward(t, y)

    field, y0 = Watched(), start()
    stats = solve(field, y0, TS).stats
    with torch.no_grad():
        unread = solve(field, y0, TS).stats
    alive = [state() for state in states[len(states) // 2 :]]
    assert all(state is None or state is y0 for state in alive)
    for found, recorded in zip(unread.estimates, stats.estimates, strict=True):
        assert torch.equal(found, recorded) and not found.requires_grad


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_estimates_are_read_one_by_one_and_in_any_order(adjoint):
    field = Net()
    estimates = solve(field, start(), TS, adjoint=adjoint).stats.estimates
    last = estimates[3]
    assert last is not None and len(estimates) == 4
    loss = last.square().sum()
    assert estimates[-1] is last and estimates[2:][1] is last
    loss.backward()
    with pytest.raises(IndexError):
        estimates[4]


def test_estimates_first_read_in_inference_mode_are_good_for_more():
    with torch.no_grad():
        stats = solve(Net(), start(), TS).stats
    with torch.inference_mode():
        assert stats.error is not None
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (scale * stats.error).sum().backward()
    assert scale.grad == stats.error.sum()
    copied = pickle.loads(pickle.dumps(stats))
    assert torch.equal(copied.error, stats.error) and torch.equal(copied.stiffness_norms, stats.stiffness_norms)
