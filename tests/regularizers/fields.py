"""Solves and penalties for tests of regularizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ndeflow.contracts import Output, Regularizer
from ndeflow.models.base import Preparation
from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solution import Adjoint, Solution, Solver
from ndeflow.numerics.solve import pose


class Net(nn.Module):
    """A small network of (t, y) on two components."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return 3 * self.net(y) * torch.cos(t)


class Linear(nn.Module):
    """dy/dt = A y."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix.T


def prepared(
    regularizer: Regularizer,
    field: Any,
    y0: Tensor,
    ts: Tensor,
    *,
    solver: Solver = RungeKutta(compile="off"),  # noqa: B008
    adjoint: Adjoint | None = None,
    **problem: Any,
) -> tuple[Tensor, Solution]:
    """The penalty of a solve as a training step makes it, and the solution."""
    preparation = Preparation({"it": regularizer})
    solution = preparation.solve(solver, adjoint or Direct(), pose(field, y0, ts, **problem))
    return regularizer.penalty(nn.Identity(), Output(solution.ys), None, preparation.solved["it"]), solution


def assert_small_differences(value: Callable[[], Tensor], weights: Sequence[Tensor], tolerance: float) -> None:
    """Gradients of `value` by each of the weights are those of small differences, along a random direction each.

    A weight without influence may have none.
    """
    gradients = torch.autograd.grad(value(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        with torch.no_grad():
            weight += 1e-5 * direction
            up = value()
            weight -= 2e-5 * direction
            down = value()
            weight += 1e-5 * direction
        want = (up - down) / 2e-5
        got = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        assert abs(got - want) < tolerance * (1 + abs(want))
