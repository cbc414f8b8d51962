"""One step by itself: where solves are compiled it is too, with the values and gradients of the solver's own step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.contracts import Problem
from ndeflow.numerics import single
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solve import pose
from tests.numerics.sdes import Waves
from tests.regularizers.fields import Net

F64 = torch.float64


class Rates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 4).double()

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(z)).unflatten(-1, (2, 2))


def problems() -> dict[str, tuple[Problem, torch.Tensor | None]]:
    """Problems, and the noise of a step where they are SDEs."""
    torch.manual_seed(3)
    y0, ts = torch.randn(4, 2, dtype=F64), torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    own = ts + torch.linspace(0, 0.5, 4, dtype=F64)[:, None]
    path = Linear.through(own, torch.randn(4, 3, 2, dtype=F64))
    return {
        "own times": (pose(Net(), y0, own), None),
        "path": (pose(Controlled(Rates()), y0, own, context=path), None),
        "noise": (pose(Waves(), torch.randn(4, 3, dtype=F64), ts), torch.randn(4, 2, 3, dtype=F64)),
    }


def summed(found: single.Estimates, problem: Problem) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    values = [x for x in found if x is not None]
    weights = [p for p in problem.field.parameters() if p.requires_grad]
    total = sum((x * torch.arange(1.0, 5.0, dtype=F64)).sum() for x in values)
    assert isinstance(total, torch.Tensor)
    return values, list(torch.autograd.grad(total, weights))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", problems())
def test_compiled_and_uncompiled_steps_agree(name: str) -> None:
    problem, noise = problems()[name]
    t = torch.full((4,), 0.6, dtype=F64) if problem.ts.dim() == 1 else problem.ts[:, 0] + 0.4
    y, h = torch.randn_like(problem.y0), torch.full((4,), 0.3, dtype=F64)
    made = AdaptiveStochastic if noise is not None else RungeKutta
    found = []
    for choice in ("off", "on"):
        solver = made(rtol=1e-3, atol=1e-3, compile=choice)
        found.append(summed(single.estimates(solver, problem, t, y, h, noise), problem))
    step = made(rtol=1e-3, atol=1e-3, compile="off").step(problem, t.view(4, 1), y, h.view(4, 1), noise=noise)
    assert step.ratio is not None and torch.equal(found[0][0][0], step.ratio)
    for ours, theirs in zip(*found, strict=True):
        assert ours and len(ours) == len(theirs)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("traced")
def test_a_step_uses_the_programs_of_the_solve() -> None:
    """No function of a field is compiled anew for it."""
    from ndeflow.numerics.accounts import account
    from ndeflow.numerics.adjoint import Direct

    ts = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    problem = pose(Net(), torch.ones(4, 2, dtype=F64), ts).with_probes(torch.tensor([0.3], dtype=F64))
    solver = RungeKutta(compile="on")
    solution = Direct()(solver, problem)
    solution.ys.sum().backward()
    entries = account(problem.field).entries
    before = [len(found) for entry in entries.values() for found in entry.programs.values()]
    t, h = solution.stats.times[:, 1], solution.stats.steps[:, 1]
    ratio, _ = single.estimates(solver, problem, t, problem.y0, h)
    assert ratio is not None
    after = [len(found) for entry in entries.values() for found in entry.programs.values()]
    assert len(entries) == 1 and sum(after) - sum(before) <= 1  # the first slope after a knot
