"""Points of the plane: their densities integrate to one, and are those that points are drawn from."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.data import Checkerboard, NineGaussians, Rings

DENSITIES = [Checkerboard, Rings, NineGaussians]
EDGE, CELLS = 6.0, 600


def grid() -> torch.Tensor:
    """(CELLS^2, 2): the centres of cells that cover [-6, 6]^2."""
    centres = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS * 2 * EDGE - EDGE
    return torch.cartesian_prod(centres, centres)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_density_integrates_to_one_and_has_the_moments_of_the_points(density) -> None:
    data, x = density(), grid()
    p = data.log_density(x).exp() * (2 * EDGE / CELLS) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    points = data.draw(200_000, torch.Generator().manual_seed(3)).double()
    for moment in (lambda z: z[:, 0] ** 2, lambda z: z[:, 0] * z[:, 1], lambda z: z[:, 0] ** 2 * z[:, 1] ** 2):
        drawn = moment(points)
        assert float((p * moment(x)).sum()) == pytest.approx(float(drawn.mean()), abs=5 * float(drawn.std()) / 447)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_reference_is_the_entropy(density) -> None:
    data, x = density(split_seed=1), grid()
    p = data.log_density(x).exp() * (2 * EDGE / CELLS) ** 2
    entropy = -torch.special.xlogy(p, p / (2 * EDGE / CELLS) ** 2).sum()
    assert data.references()["reference/nll"] == pytest.approx(float(entropy), abs=0.03)


def test_splits_are_drawn_apart_by_the_split_seed() -> None:
    data, again, other = Rings(train_points=50), Rings(train_points=50), Rings(train_points=50, split_seed=1)
    assert data.train.ys.shape == (50, 1, 2) and data.test.ys.shape == (20_000, 1, 2) and bool(data.train.seen.all())
    assert torch.equal(data.train.ys, again.train.ys) and not torch.equal(data.train.ys, other.train.ys)
    assert not torch.equal(data.train.ys, data.test.ys[:50])
    assert Checkerboard().references()["reference/nll"] == pytest.approx(math.log(18), abs=1e-6)
    with pytest.raises(ValueError, match="at least one point"):
        Rings(test_points=0)
