"""Simulated spirals: their law against finer steps, apart in their splits, alike for one seed."""

from __future__ import annotations

import pytest
import torch

from ndeflow.data import Spirals
from ndeflow.fields.known import CubicSpiral
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic

SMALL = {"train_paths": 60, "val_paths": 40, "test_paths": 50, "points": 5}


def test_paths_begin_at_one_point_and_their_law_is_that_of_other_steps():
    """Means and second moments at the end, within four standard errors."""
    data = Spirals(**{**SMALL, "train_paths": 1500})
    ys = data.train.ys.double()
    assert (ys[:, 0] == torch.tensor([2.0, 0.0])).all() and data.train.ts[0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    y0, ts = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(1500, -1), data.train.ts[0].double()
    with torch.no_grad():
        fine = solve(CubicSpiral().double(), y0, ts, solver=Stochastic("euler", 500), noise=Brownian(77)).ys
    for f in (lambda y: y[:, 1:], lambda y: y[:, 1:].square()):
        a, b = f(ys), f(fine)
        error = ((a.var(dim=0) + b.var(dim=0)) / 1500).sqrt()
        assert ((a.mean(dim=0) - b.mean(dim=0)).abs() < 4 * error).all()


def test_splits_are_apart_and_repeat_with_their_seed():
    data, again, other = Spirals(**SMALL), Spirals(**SMALL), Spirals(**SMALL, split_seed=1)
    ends = [split.ys[:, -1] for split in (data.train, data.val, data.test)]
    assert [len(end) for end in ends] == [60, 40, 50] and len(torch.cat(ends).unique(dim=0)) == 150
    assert torch.equal(again.test.ys, data.test.ys) and not torch.equal(other.test.ys, data.test.ys)
    assert data.test.seen[:, 0].all() and not data.test.seen[:, 1:].any()


def test_the_reference_is_that_of_a_true_law():
    few, many = (Spirals(**{**SMALL, "test_paths": n}).references()["reference/moments"] for n in (50, 2000))
    assert 0 < many < few / 5


def test_too_few_paths_are_refused():
    with pytest.raises(ValueError, match="expected at least two points, and two paths a split"):
        Spirals(points=1)
