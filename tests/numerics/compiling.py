"""Solves compiled and not: the same values, gradients and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ndeflow.numerics.compilation import account
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.solution import Solution
from ndeflow.numerics.solve import solve
from tests.problems import apart, start

TS = torch.tensor([0.0, 0.3, 0.3, 1.5], dtype=torch.float64)
HEUN = {"method": "heun", "rtol": 1e-2, "atol": 1e-2}
OFF, ON = RungeKutta(**HEUN, compile="off"), RungeKutta(**HEUN, compile="on")

LOSSES: list[tuple[Callable[[Solution], Any], float]] = [
    (lambda s: s.ys.sin().sum() + s.integrals.square().sum(), 1e-12),
    (lambda s: s.stats.error.square().sum(), 1e-10),
    (lambda s: s.ys.square().sum() + (0.0 if s.stats.stiffness is None else s.stats.stiffness.sum()), 1e-6),
    (lambda s: total([s.stats.error_norms]) + 0.0 * s.ys.sum(), 1e-8),
    (lambda s: total([s.stats.error_norms, s.stats.stiffness_norms]) + s.ys.square().sum(), 1e-6),
]


def total(values: Sequence[Tensor | None]) -> Tensor | float:
    """The sum of what there is."""
    return sum((x.sum() for x in values if x is not None), start=0.0)


class Small(nn.Module):
    """dy/dt = rate(self, t, y), with a linear layer `lin` to read; further attributes by keyword."""

    def __init__(self, rate: Callable[..., Any], size: int = 2, **more: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.lin = nn.Linear(size, size).double()
        self.rate = rate
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, t: Tensor, y: Tensor, *context: Any) -> Any:
        return self.rate(self, t, y, *context)


def tanh(self: Any, t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(self.lin(y)) * torch.cos(t)


def programs(field: nn.Module) -> int:
    """How many were made for a field."""
    entries = account(field).entries.values()
    return sum(program is not None for entry in entries for made in entry.programs.values() for program in made)


def assert_alike(
    run: Callable[[RungeKutta], Solution],
    inputs: Sequence[Tensor],
    losses: Sequence[tuple[Callable[[Solution], Any], float]] = LOSSES,
    **settings: Any,
) -> None:
    """Values, counts and the gradients of each loss, compiled against eager."""
    settings = HEUN | settings
    assert_same(*(run(RungeKutta(**settings, compile=compile)) for compile in ("off", "on")), inputs, losses)


def assert_same(
    eager: Solution,
    compiled: Solution,
    inputs: Sequence[Tensor],
    losses: Sequence[tuple[Callable[[Solution], Any], float]],
) -> None:
    """Values, counts and the gradients of each loss of two solutions."""
    assert apart(compiled.ys.detach(), eager.ys.detach()) < 1e-13
    for name in ("nfe", "accepted", "rejected", "status"):
        assert torch.equal(getattr(compiled.stats, name), getattr(eager.stats, name)), name
    for read, bound in losses:
        wanted, found = (
            torch.autograd.grad(read(s), inputs, retain_graph=True, allow_unused=True) for s in (eager, compiled)
        )
        for a, b in zip(wanted, found, strict=True):
            assert (a is None and (b is None or not b.any())) or (b is not None and apart(b, a) < bound)


def assert_right(field: nn.Module, rows: int = 3, ts: Tensor = TS, **settings: Any) -> None:
    """`assert_alike` for a field without context."""
    y0 = start(rows).requires_grad_()
    inputs = [y0, *(p for p in field.parameters() if p.requires_grad)]
    assert_alike(lambda solver: solve(field, y0, ts, solver=solver), inputs, **settings)
