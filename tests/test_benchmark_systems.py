"""Systems of scripts/benchmark.py on stochastic and controlled equations that take no time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ndeflow
from benchmarking.block import errors, made
from benchmarking.cases import CASES, CDE, SDE, Case
from benchmarking.cde.problem import CDEProblem
from benchmarking.sde.problem import SDEProblem
from benchmarking.system import System
from ndeflow import Brownian, solve
from ndeflow.numerics.paths import Hermite

CPU = torch.device("cpu")


def test_jax_gets_the_same_drift_and_diffusion():
    pytest.importorskip("diffrax")
    from benchmarking.jax_system import tensor
    from benchmarking.sde.peers import Diffrax, spread

    problem = SDEProblem(SDE("", (), batch=2, dim=2, width=4), CPU)
    system, t, y = Diffrax(problem), problem.ts[0], problem.y0
    drift, diffusion = system.field(None, system.y0, system.weights), spread(system.y0, system.weights)
    torch.testing.assert_close(tensor(drift).float(), problem.field.drift(t, y).detach())
    torch.testing.assert_close(tensor(diffusion).float(), problem.field.diffusion(t, y).detach())


def test_jax_gets_the_same_path_and_matrix():
    pytest.importorskip("diffrax")
    from benchmarking.cde.peer import Diffrax
    from benchmarking.jax_system import tensor

    problem = CDEProblem(CDE("", (), batch=2, length=5, channels=2, hidden=3), CPU)
    system = Diffrax(problem, "backsolve")
    matrix, slope = system.field(None, system.y0, system.weights), system.path.derivative(2.3)
    expected = Hermite.through(problem.knots, problem.xs).derivative(torch.tensor(2.3))
    torch.testing.assert_close(tensor(matrix).float(), problem.field(problem.ts[0], problem.y0).detach())
    torch.testing.assert_close(tensor(slope).float(), expected, rtol=1e-4, atol=1e-5)


def small(case: Case, name: str) -> tuple[System[Any], Any]:
    """A system and its problem, after a call; skipped where it is not installed."""
    suite = case.suite()
    problem = suite.problem(case, CPU)
    systems, absent = made(suite, problem, [name])
    if absent:
        pytest.skip(absent[name])
    systems[name].call()
    return systems[name], problem


@pytest.mark.parametrize(
    ("name", "method", "nfe", "most"),
    [
        ("ndeflow-eager-direct", "rk4", 16, 1e-2),
        ("ndeflow-eager-direct", "dopri5", 35, 1e-3),
        ("torchcde-autograd", "rk4", 17, 1e-2),  # one to look at the shapes
        ("torchcde-autograd", "dopri5", 63, 0.1),  # it steps across knots
        ("torchcde-autograd-jumps", "dopri5", 37, 1e-3),
        ("diffrax-checkpointed-jumps", "dopri5", 32, 1e-3),
        ("diffrax-backsolve-jumps", "dopri5", 32, 1e-3),
    ],
)
def test_systems_solve_the_same_cde(name, method, nfe, most):
    system, problem = small(CDE("", (), batch=2, method=method, length=5, channels=2, hidden=3), name)
    error, gradient_error = errors(system, problem.reference())
    assert error is not None and error < most / 10
    assert gradient_error is not None and gradient_error < most
    assert system.cost().nfe == pytest.approx(nfe, abs=0 if method == "rk4" else 12) and system.kept() > 0


@pytest.mark.parametrize(
    ("name", "nfe", "known"),
    [
        ("ndeflow-eager-direct-philox", 6, True),
        ("torchsde-autograd-interval", 7, False),  # one to look at the shapes
        ("torchsde-autograd-default", 7, False),
        ("loop-autograd-randn", 6, False),
        ("jax-scan-rbg", 6, False),
    ],
)
def test_systems_take_the_steps_of_the_same_sde(name, nfe, known):
    system, problem = small(SDE("", (), batch=2, method="milstein", steps=6, end=1.5, dim=2, width=4), name)
    assert system.cost().nfe == nfe and system.kept() > 0
    found = errors(system, problem.reference())
    if known:
        assert max(float(each or 1.0) for each in found) < 1e-5
    else:
        assert found == (None, None)


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_steps_written_by_hand_are_those_of_ndeflow(monkeypatch, method):
    system, problem = small(
        SDE("", (), batch=2, method=method, steps=1, end=1.0, dim=2, width=4), "ndeflow-eager-direct-philox"
    )
    loop = problem.case.suite().systems["loop-autograd-randn"](problem)
    noise = solve(Plain(), 0 * problem.y0, problem.ts, solver=system.solver, noise=Brownian(0)).ys[:, -1]
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    torch.testing.assert_close(loop.solve()[:, -1].detach().double(), system.result().y)


class Plain(ndeflow.SDE):
    """Its solution is the noise."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)

    def drift(self, t, y):
        return 0 * y

    def diffusion(self, t, y):
        return torch.ones_like(y)


def test_every_call_has_new_noise():
    for name in ("ndeflow-eager-direct-philox", "torchsde-autograd-interval", "loop-autograd-randn"):
        system, _ = small(SDE("", (), batch=2, steps=2, dim=2, width=4), name)
        assert not torch.equal(system.solve(), system.solve())


def test_so_many_steps_have_no_reference():
    assert CASES["sde-50000"].suite().problem(CASES["sde-50000"], CPU).reference() is None
