"""Fixed-step solvers whose steps are compiled in chunks: the same numbers, gradients and counts as step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndeflow import (
    SDE,
    Brownian,
    Checkpointed,
    Controlled,
    Direct,
    FixedRungeKutta,
    Reversible,
    RungeKutta,
    Solution,
    SolveError,
    Stochastic,
    solve,
)
from ndeflow.numerics.accounts import account
from ndeflow.numerics.chunks import Chunked
from ndeflow.numerics.derivatives import Evaluation, Integrand
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.replay import carried
from tests.numerics.compiling import Small, programs

pytestmark = pytest.mark.usefixtures("traced", "short")

F64 = torch.float64
TS = torch.tensor([0.0, 0.5, 1.2], dtype=F64)
NOISE = Brownian(3, torch.tensor([5, 1, 9, 2]))


class Tanh(SDE):
    """A drift that depends on time, and a diffusion of each kind, of linear layers."""

    def __init__(self, noise_type: str, sde_type: str, size: int = 3) -> None:
        super().__init__(noise_type=noise_type, sde_type=sde_type, noise_size=size)
        columns = 1 if noise_type == "diagonal" else size
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.rate, self.scale = nn.Linear(3, 3).double(), nn.Linear(3, 3 * columns).double()

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return torch.tanh(self.rate(y)) * torch.cos(t)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        g = torch.sigmoid(self.scale(torch.zeros_like(y) if self.noise_type == "additive" else y))
        return g if self.noise_type == "diagonal" else g.view(len(y), 3, -1)


def start() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=F64).view(4, 3).requires_grad_()


def answers(field: nn.Module, solver: Any, adjoint: Any, ts: Tensor = TS, **more: Any) -> tuple[Solution, list[Tensor]]:
    """A solution, and the gradients of y0, times and parameters."""
    y0, ts = start(), ts.clone().requires_grad_(ts.requires_grad)
    solution = solve(field, y0, ts, solver=solver, adjoint=adjoint, **more)
    loss = solution.ys.sin().sum() + solution.integrals.square().sum()
    wanted = [x for x in (y0, ts, *field.parameters()) if x.requires_grad]
    return solution, [
        g if g is not None else y0.new_zeros(()) for g in torch.autograd.grad(loss, wanted, allow_unused=True)
    ]


def assert_same(field: nn.Module, off: Any, on: Any, adjoint: Any, **more: Any) -> None:
    (expected, gradients), (found, others) = answers(field, off, Direct(), **more), answers(field, on, adjoint, **more)
    torch.testing.assert_close(found.ys, expected.ys, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.integrals, expected.integrals, rtol=1e-13, atol=1e-13)
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    for name in ("nfe", "accepted", "rejected", "status"):
        assert torch.equal(getattr(found.stats, name), getattr(expected.stats, name))
    torch.testing.assert_close(found.stats.times, expected.stats.times)
    torch.testing.assert_close(found.stats.steps, expected.stats.steps)
    assert found.solver is on


CASES = [
    ("euler", "diagonal", "ito", 3, 3, Direct()),
    ("euler", "general", "ito", 2, 4, Checkpointed()),
    ("milstein", "scalar", "ito", 1, 2, Direct()),
    ("milstein", "diagonal", "stratonovich", 3, 2, Checkpointed()),
    ("heun", "general", "stratonovich", 2, 2, Direct()),
    ("midpoint", "additive", "stratonovich", 2, 2, Checkpointed()),
    ("reversible_heun", "diagonal", "stratonovich", 3, 3, Checkpointed()),
    ("reversible_heun", "general", "stratonovich", 2, 4, Direct()),
]


@pytest.mark.parametrize(("method", "noise", "calculus", "size", "steps", "adjoint"), CASES)
def test_compiled_paths_are_those_of_single_steps(method, noise, calculus, size, steps, adjoint) -> None:
    field = Tanh(noise, calculus, size)
    off, on = (Stochastic(method, steps=steps, compile=compile) for compile in ("off", "on"))
    assert_same(field, off, on, adjoint, noise=NOISE)


@pytest.mark.parametrize(
    ("noise", "size", "steps", "compile"),
    [("diagonal", 3, 7, "off"), ("general", 2, 10, "off"), ("additive", 2, 3, "off"), ("diagonal", 3, 4, "on")],
)
def test_reversible_heun_is_its_own_exact_pair_at_any_spacing(noise, size, steps, compile) -> None:
    field, off = Tanh(noise, "stratonovich", size), Stochastic("reversible_heun", steps=steps, compile="off")
    expected, gradients = answers(field, off, Direct(), noise=NOISE)
    solver = Stochastic("reversible_heun", steps=steps, compile=compile)
    found, others = answers(field, solver, Reversible(), noise=NOISE)
    torch.testing.assert_close(found.ys, expected.ys, rtol=1e-13, atol=1e-13)
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert found.stats.nfe.tolist() == [2 * steps + 1] * 4
    assert found.stats.backward_nfe == [4 * steps + 1]  # back and again, and the first slope


def test_reversible_heun_keeps_no_states_between_the_passes() -> None:
    solver = Stochastic("reversible_heun", steps=50)
    field = Tanh("diagonal", "stratonovich")
    solution = solve(field, start(), TS, solver=solver, adjoint=Reversible(), noise=NOISE)
    nodes = solution.ys.grad_fn.tape.trace.nodes
    kept = {x.data_ptr() for node in nodes for x in (node.z, *carried(node.carry))}
    assert len(nodes) == 100 and len(kept) == 1


def test_steps_that_lose_their_digits_are_refused() -> None:
    class Fast(Tanh):
        def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
            return -40 * y

    y0 = start()
    solution = solve(
        Fast("diagonal", "stratonovich"),
        y0,
        torch.tensor([0.0, 20.0], dtype=F64),
        solver=Stochastic("reversible_heun", steps=400),
        adjoint=Reversible(),
        noise=NOISE,
    )
    with pytest.raises(SolveError, match="lead back to y0 with a relative error"):
        solution.ys.sum().backward()


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_only_reversible_methods_are_taken_back(method) -> None:
    field = Tanh("diagonal", "ito" if method == "euler" else "stratonovich")
    with pytest.raises(ValueError, match=r"expected Stochastic\('reversible_heun'\)"):
        answers(field, Stochastic(method), Reversible(), noise=NOISE)


ROWS = TS + torch.linspace(0, 0.3, 4, dtype=F64)[:, None] * TS


@pytest.mark.parametrize(
    ("method", "steps", "ts"),
    [("euler", 4, TS.clone().requires_grad_()), ("midpoint", 1, ROWS), ("rk4", 2, TS.flip(0))],
)
def test_fixed_runge_kutta_compiles_with_context_times_and_integrands(method, steps, ts) -> None:
    class Energy(Integrand):
        def forward(self, at: Evaluation, own: Any) -> Tensor:
            return at.dy.square().sum(-1)

    field = Small(lambda self, t, y: torch.tanh(self.lin(y)) * torch.cos(t), size=3)
    off, on = (FixedRungeKutta(method, steps=steps, compile=compile) for compile in ("off", "on"))
    assert_same(field, off, on, Checkpointed(), ts=ts, integrands=((Energy(), None),))


def test_one_program_serves_all_knots_of_a_controlled_field() -> None:
    ts = torch.tensor(
        [[0.0, 0.4, 1.0, 1.0], [0.0, 0.1, 0.7, 2.0], [0.0, 0.5, 0.6, 0.9], [0.0, 1.0, 1.1, 1.2]], dtype=F64
    )
    xs = torch.randn(4, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    field = Controlled(Small(lambda self, t, y: torch.tanh(self.lin(y)).view(len(y), 3, 2), size=3))
    field.field.lin = nn.Linear(3, 6).double()
    path = Hermite.through(ts, xs)
    off, on = (FixedRungeKutta(compile=compile) for compile in ("off", "on"))
    for adjoint in (Direct(), Checkpointed()):
        assert_same(field, off, on, adjoint, ts=ts[:, [0, -1]], context=path)
    assert programs(field) == 2  # with activations kept, and steps alone
    adaptive = RungeKutta("heun", 1e-2, 1e-2, compile="on")
    answers(field, adaptive, Direct(), ts=ts[0], context=Hermite.through(ts[0], xs))
    made = [made for entry in account(field).entries.values() for made in entry.programs.values()]
    assert all(len(programs) == 1 and programs[0] is not None for programs in made)


def test_chunks_divide_a_segment() -> None:
    assert [Chunked.of(FixedRungeKutta(steps=n), 5).size for n in (1, 2, 6, 7, 10, 100)] == [1, 2, 3, 1, 5, 5]


def test_a_failure_names_the_step_inside_a_chunk() -> None:
    class Burst(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.where(t >= 0.65, torch.inf, 0.0) * torch.ones_like(y)

    for compile in ("off", "on"):
        with pytest.raises(SolveError, match=r"row 0, in the step of size 0.1 from time 0.7 \(") as caught:
            solver = FixedRungeKutta("euler", steps=10, compile=compile)
            solve(Burst(), start(), torch.tensor([0.0, 1.0], dtype=F64), solver=solver)
        assert caught.value.status.tolist() == [1, 1, 1, 1]


def test_second_derivatives_and_mesh_states() -> None:
    field, y0 = Tanh("diagonal", "ito"), start()
    solution = solve(field, y0, TS, solver=Stochastic(steps=4, compile="on"), adjoint=Checkpointed(), noise=NOISE)
    (first,) = torch.autograd.grad(solution.ys.sin().sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), y0)
    solution = solve(field, y0, TS, solver=Stochastic(steps=4, compile="off"), noise=NOISE)
    (expected,) = torch.autograd.grad(solution.ys.sin().sum(), y0, create_graph=True)
    (other,) = torch.autograd.grad(expected.square().sum(), y0)
    torch.testing.assert_close(second, other, rtol=1e-11, atol=1e-12)
