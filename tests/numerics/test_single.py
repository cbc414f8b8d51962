"""One more step: where solves are compiled it is too, with the values and gradients of the solver's own step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from ndeflow.contracts import Problem
from ndeflow.numerics import single
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled, conditions
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solution import Adjoint
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
    path = Linear.through(own, torch.randn(4, 3, 2, dtype=F64, requires_grad=True))
    found = {
        "own times": (pose(Net(), y0, own), None),
        "path": (pose(Controlled(Rates()), y0, own, context=path), None),
        "noise": (pose(Waves(), torch.randn(4, 3, dtype=F64), ts), torch.randn(4, 2, 3, dtype=F64)),
    }
    return {name: (replace(problem, keep_mesh=True), noise) for name, (problem, noise) in found.items()}


def wanted(problem: Problem) -> list[torch.Tensor]:
    """What gradients are asked of: parameters, and the leaves of the context."""
    tensors = [*problem.field.parameters(), *conditions(problem.context, ())]
    return [x for x in tensors if x.requires_grad]


def summed(found: single.Norms, problem: Problem) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The norms there are, and a weighted sum of them with its gradients, on the graph."""
    values = [x for x in found if x is not None]
    total = torch.stack(values).dot(torch.arange(1.0, len(values) + 1, dtype=F64))
    return values, list(torch.autograd.grad(total, wanted(problem), allow_unused=True, create_graph=True))


def twice(gradients: list[torch.Tensor], problem: Problem) -> Sequence[torch.Tensor | None]:
    """Gradients of the sum of squares of gradients."""
    total = torch.cat([g.flatten() for g in gradients if g is not None]).square().sum()
    return torch.autograd.grad(total, wanted(problem), allow_unused=True)


def close(ours: Sequence[torch.Tensor | None], theirs: Sequence[torch.Tensor | None]) -> bool:
    def alike(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        return a is b if a is None or b is None else torch.allclose(a, b, rtol=1e-6, atol=1e-10)

    return all(map(alike, ours, theirs)) and len(ours) == len(theirs)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("name", problems())
def test_compiled_and_uncompiled_steps_agree(name: str, adjoint: Adjoint) -> None:
    """At the start of an accepted step and inside it, with their gradients, and these with theirs."""
    problem, noise = problems()[name]
    made = AdaptiveStochastic if noise is not None else RungeKutta
    off, on = (made(rtol=1e-3, atol=1e-3, compile=choice) for choice in ("off", "on"))
    solved, compiled = adjoint(off, problem), adjoint(on, problem)
    assert len(solved.stats.steps[0]) > 2
    for fraction in (0.0, 0.4):
        values, gradients = summed(single.norms(solved, 1, fraction, noise), problem)
        others, theirs = summed(single.norms(compiled, 1, fraction, noise), problem)
        assert values and close(values, others) and close(gradients, theirs)
        assert close(*(twice(found, problem) for found in (gradients, theirs)))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("choice", ["off", "on"])
def test_it_is_a_step_of_the_solver_from_where_a_shorter_one_comes_to(choice: str) -> None:
    problem, _ = problems()["own times"]
    solver = RungeKutta(rtol=1e-3, atol=1e-3, compile=choice)
    solution = Direct()(solver, problem)
    assert solution.stats.states is not None
    t, y, h = solution.stats.times[:, 1:2], solution.stats.states[:, 1], solution.stats.steps[:, 1:2]
    plain = RungeKutta(rtol=1e-3, atol=1e-3, compile="off")
    for fraction in (0.0, 0.7):
        start = plain.step(problem, t, y, fraction * h).y.detach()
        want = plain.step(problem, t + fraction * h, start, h)
        values, gradients = summed(single.norms(solution, 1, fraction), problem)
        assert want.ratio is not None and want.stiffness is not None
        theirs, own = summed((want.ratio.norm(), want.stiffness.norm()), problem)
        assert close(values, theirs) and close(gradients, own)


@pytest.mark.usefixtures("traced")
def test_a_step_uses_the_programs_of_the_solve() -> None:
    """No function of a field is compiled anew for it, and at an accepted step none is called before the backward."""
    from ndeflow.numerics.accounts import account

    ts = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    problem = replace(pose(Net(), torch.ones(4, 2, dtype=F64), ts), keep_mesh=True)
    solution = Direct()(RungeKutta(compile="on"), problem)
    solution.ys.sum().backward()
    entries = account(problem.field).entries
    before = [len(found) for entry in entries.values() for found in entry.programs.values()]
    for fraction in (0.0, 0.5):
        norm, _ = single.norms(solution, 1, fraction)
        assert norm is not None
        norm.backward()
    after = [len(found) for entry in entries.values() for found in entry.programs.values()]
    assert len(entries) == 1 and sum(after) - sum(before) <= 1  # the first slope after a knot


@pytest.mark.usefixtures("traced", "uncollected")
@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("choice", ["off", "on"])
def test_what_it_has_used_is_free_without_the_garbage_collector(choice: str, fraction: float) -> None:
    field, ts = Net(), torch.tensor([0.0, 1.0, 2.0], dtype=F64)

    def used() -> weakref.ref[torch.Tensor]:
        y0 = torch.ones(4, 2, dtype=F64)
        solution = Direct()(RungeKutta(compile=choice), replace(pose(field, y0, ts), keep_mesh=True))
        norm, _ = single.norms(solution, 1, fraction)
        assert norm is not None
        (solution.ys.sum() + norm).backward()
        return weakref.ref(y0)

    used()
    assert used()() is None
