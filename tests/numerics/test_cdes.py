"""Controlled equations compiled and not: the same values and gradients, one program for all knots."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Piecewise
from ndeflow.numerics.solve import solve
from tests.numerics.cdes import HIDDEN, ROWS, Response, drive, irregular, values
from tests.numerics.compiling import HEUN, LOSSES, assert_same, programs

pytestmark = pytest.mark.usefixtures("traced")

LINES, CUBICS = ("linear", "rectilinear"), ("hermite", "natural_cubic")
SOLVERS: dict[str, Callable[[str], Any]] = {
    "midpoint": lambda compile: FixedRungeKutta("midpoint", 2, compile=compile),
    "shared": lambda compile: RungeKutta(**HEUN, compile=compile),
    "per_sample": lambda compile: RungeKutta(**HEUN, compile=compile, batching="per_sample"),
}


def assert_alike(field: Controlled, kind: str, make: Callable[[str], Any], own: bool, seed: int, times: int) -> None:
    """States, and gradients for parameters, start, observations and the path's coefficients."""
    y0, (xs, mask) = torch.ones(ROWS, HIDDEN, dtype=torch.float64).requires_grad_(), values(seed, times)
    path = drive(kind, irregular(own, seed, times), xs.requires_grad_(), mask)
    assert isinstance(path, Piecewise)
    found = [solve(field, y0, path.at_observations(), solver=make(how), context=path) for how in ("off", "on")]
    assert_same(*found, [y0, xs, *path.coefficients, *field.parameters()], LOSSES[:1])


@pytest.mark.parametrize(
    ("name", "own", "kinds"),
    [
        ("midpoint", False, LINES),
        ("midpoint", True, LINES),
        ("midpoint", False, CUBICS),
        ("midpoint", True, CUBICS),
        ("shared", False, LINES),
        ("per_sample", True, CUBICS),
    ],
)
def test_one_program_serves_all_knots_and_all_paths_of_a_degree(name, own, kinds):
    field, counts = Controlled(Response()), set()
    for kind, (seed, times) in product(kinds, ((0, 6), (1, 4))):
        assert_alike(field, kind, SOLVERS[name], own, seed, times)
        counts.add(programs(field))
    assert len(counts) == 1 and 0 not in counts
