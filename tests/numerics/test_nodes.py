"""Nodes: which steps they allow, that each is split once, and that their noise is the tree's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.nodes import CELLS, Nodes, RowNodes
from ndeflow.numerics.stepper import Eager
from ndeflow.numerics.tree import DEPTH, BrownianTree
from tests.numerics.sdes import Free

F64 = torch.float64
NOISE = Brownian(7)


class Counted(Eager):
    """Counts the nodes that are split, the root included."""

    splits = 0

    def normals(self, *given):
        self.splits += 1
        return super().normals(*given)


def nodes(kind, rows: int = 3, parts: int = 1):
    """On the second segment of a problem with two channels."""
    problem = Problem(Free(2), torch.zeros(rows, 2, dtype=F64), torch.tensor([0.0, 1.0, 3.0], dtype=F64), noise=NOISE)
    solver = AdaptiveStochastic()
    system = solver.system(problem)
    stepper = Counted(solver, system)
    made = kind(NOISE, system.index, stepper, parts)
    return made, system.at(1), stepper


def tree(start: float, stop: float, rows: int = 3) -> Tensor:
    """W and sqrt(12) H over a part of the unit interval, (B, 2, 2)."""
    device = torch.device("cpu")
    w, h = BrownianTree(NOISE, 0.0, 1.0, 2, number=1)(start, stop, batch=rows, dtype=F64, device=device)
    return torch.stack([w, math.sqrt(12) * h], dim=1)


STEPS = [
    *((0.0, 1.0), (0.0, 0.25), (0.25, 0.25), (0.5, 0.125), (0.625, 2.0**-10)),
    *((0.625 + 2.0**-10, 2.0**-DEPTH), (0.75, 0.25)),
]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_noise_of_steps_is_that_of_the_tree(parts):
    walk, leg, _ = nodes(Nodes, parts=parts)
    walk.enter(leg)
    for theta, size in STEPS[:5] + STEPS[6:] + STEPS[:3]:  # in any order
        got = walk.normals(theta, size)
        half = theta + size / 2
        want = tree(theta, theta + size)
        if parts == 2:
            want = math.sqrt(2) * torch.stack([tree(theta, half)[:, 0], tree(half, theta + size)[:, 0]], dim=1)
        assert torch.allclose(got, want / math.sqrt(size), rtol=1e-8, atol=1e-8)


def test_the_smallest_nodes_of_all_are_reached():
    walk, leg, _ = nodes(Nodes)
    walk.enter(leg)
    theta, size = STEPS[5]
    got, want = walk.normals(theta, size)[:, 0], tree(theta, theta + size)[:, 0] * 2 ** (DEPTH / 2)
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_rows_at_their_own_pace_have_the_noise_of_rows_together(parts):
    one, leg, _ = nodes(Nodes, parts=parts)
    many, _, stepper = nodes(RowNodes, parts=parts)
    one.enter(leg)
    many.enter(leg, None)
    rows = torch.arange(3)
    for chosen in ([0, 0, 1], [1, 3, 2], [3, 4, 6], [4, 6, 6]):
        theta, size = torch.tensor([STEPS[i] for i in chosen], dtype=F64).unbind(1)
        got = many.normals(theta, size, *many.reach(theta, size).tolist())
        want = [one.normals(*STEPS[i])[row] for row, i in zip(rows.tolist(), chosen, strict=True)]
        assert torch.allclose(got, torch.stack(want), rtol=1e-14)
    stay = torch.tensor([2, 0])
    many.keep(many.splits.leg, stay)
    theta, size = torch.tensor([STEPS[6], STEPS[5]], dtype=F64).unbind(1)
    got = many.normals(theta, size, *many.reach(theta, size).tolist())
    want = torch.stack([one.normals(*STEPS[6])[2], one.normals(*STEPS[5])[0]])
    assert torch.allclose(got, want, rtol=1e-14)


def test_rows_at_the_end_need_nothing():
    many, leg, _ = nodes(RowNodes)
    many.enter(leg, None)
    theta, size = torch.tensor([1.0, 0.0, 0.5], dtype=F64), torch.tensor([0.25, 1.0, 0.5], dtype=F64)
    assert many.reach(theta, size).tolist() == [0, 1]
    assert many.reach(theta, torch.tensor([0.25, 1.0, 1.0], dtype=F64)).tolist() == [0, 0]


def test_a_walk_splits_each_node_once():
    walk, leg, stepper = nodes(Nodes)
    walk.enter(leg)
    for k in range(64):
        walk.normals(k / 64, 1 / 64)
    assert stepper.splits == 1 + 63  # the root's own normals, and every node above the steps
    many, leg, stepper = nodes(RowNodes)
    many.enter(leg, None)
    for k in range(64):
        theta, size = torch.full((3,), k / 64, dtype=F64), torch.full((3,), 1 / 64, dtype=F64)
        many.normals(theta, size, *many.reach(theta, size).tolist())
    assert stepper.splits == 1 + 63


def test_steps_are_the_largest_nodes_that_fit():
    walk, many = nodes(Nodes)[0], nodes(RowNodes)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        level = int(torch.randint(1, DEPTH, (), generator=generator))
        theta = int(torch.randint(2**level, (), generator=generator)) / 2**level
        wish = float(torch.rand((), generator=generator, dtype=F64) ** 8)
        size = walk.fit(theta, wish)
        assert size <= max(wish, 1 / CELLS) and math.log2(size) == round(math.log2(size))
        assert theta / size == round(theta / size)
        assert 2 * size > wish or theta / (2 * size) != round(theta / (2 * size)) or size == 1.0
        assert many.fit(torch.tensor([theta], dtype=F64), torch.tensor([wish], dtype=F64)).item() == size
