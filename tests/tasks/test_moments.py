"""The moments' loss is its formula, pairs no paths, ignores what is not marked, and is small for the true law alone."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.contracts import DataSpec, Output
from ndeflow.metrics import Averages
from ndeflow.tasks import MomentMatching

SPEC = DataSpec(channels=("a", "b"), mean=(10.0, 20.0), std=(2.0, 4.0))
F64 = torch.float64


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def loss(prediction, ys, weights=None, **output):
    weights = torch.ones_like(ys) if weights is None else weights
    return MomentMatching()(Output(prediction, **output), ys, weights, SPEC)


def test_it_is_the_formula_and_its_metric_is_in_data_units():
    x, y = draws(7, 4, 2), draws(7, 4, 2, seed=1)
    mean, variance = x.mean(dim=0) - y.mean(dim=0), x.var(dim=0) - y.var(dim=0)
    torch.testing.assert_close(loss(x, y), (mean.square() + variance.square()).mean())
    averages, unit = Averages(), torch.tensor(SPEC.std, dtype=F64)
    averages.add(MomentMatching().metrics(Output(x), y, torch.ones_like(y), SPEC))
    want = ((unit * mean).square() + (unit.square() * variance).square()).mean()
    assert averages.compute()["moments"] == pytest.approx(want.item())


def test_in_large_units_the_metric_is_of_double_precision():
    x, y, averages = draws(7, 4, 1).float(), draws(7, 4, 1, seed=1).float(), Averages()
    spec = DataSpec(channels=("a",), mean=(0.0,), std=(1e30,))
    averages.add(MomentMatching().metrics(Output(x), y, torch.ones_like(y), spec))
    assert averages.compute()["moments"] == pytest.approx(1e120 * (x.var(dim=0) - y.var(dim=0)).square().mean().item())


def test_paths_are_not_paired_and_draws_count_together():
    x, y = draws(7, 4, 2), draws(7, 4, 2, seed=1)
    torch.testing.assert_close(loss(x.flip(0), y), loss(x, y))
    many = draws(3, 7, 4, 2)
    gaps = (f(many, (0, 1)) - f(y, 0) for f in (torch.mean, torch.var))
    torch.testing.assert_close(loss(many, y, draws=True), sum(gap.square().mean() for gap in gaps))


def test_what_is_not_marked_never_enters():
    x, y, weights = draws(7, 4, 2), draws(7, 4, 2, seed=1), torch.ones(7, 4, 2, dtype=F64)
    weights[:, 0], weights[5:, 1], weights[1:, 2] = 0, 0, 0
    expected = torch.stack(
        [
            (f(x[:rows, t]) - f(y[:rows, t])).square().mean()
            for f in (lambda z: z.mean(dim=0), lambda z: z.var(dim=0))
            for t, rows in ((1, 5), (3, 7))
        ]
    )
    hidden = torch.where(weights > 0, y, math.nan)
    x = torch.where(weights > 0, x, math.inf).requires_grad_()
    found = loss(x, hidden, weights)
    torch.testing.assert_close(found, expected.sum() / 2)
    (gradient,) = torch.autograd.grad(found, x)
    assert gradient.isfinite().all() and not gradient[:, [0, 2]].any()


def test_the_true_law_has_a_loss_of_one_over_the_paths():
    """E = 2 / B + 4 / (B - 1) for standard normals, and that of a wider law is more."""
    rows, count = 50, 400
    found = [loss(draws(rows, 1, 2, seed=k), draws(rows, 1, 2, seed=count + k)).item() for k in range(count)]
    want = 2 / rows + 4 / (rows - 1)
    assert sum(found) / count == pytest.approx(want, rel=0.15)
    assert loss(1.5 * draws(rows, 1, 2), draws(rows, 1, 2, seed=1)) > 5 * want
