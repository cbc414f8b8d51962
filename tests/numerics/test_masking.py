"""Rows of a march of equal steps that fail one by one: the others are solved as if they were alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE, replace_leaves
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import NON_FINITE, Solution, SolveError
from ndeflow.numerics.solve import solve
from ndeflow.numerics.some import held, some
from ndeflow.numerics.stochastic import Stochastic
from tests.problems import Mixed

pytestmark = pytest.mark.usefixtures("traced", "short")

F64 = torch.float64
TS = torch.tensor([0.0, 0.2, 0.2, 0.5, 1.0], dtype=F64)
GOOD, BAD = torch.tensor([0, 2, 3]), torch.tensor([1, 4])
EVERY = torch.arange(5)
STATES = torch.tensor([[0.3, -0.2], [2.0, 0.1], [-0.5, 0.4], [0.1, 0.6], [-7.0, 0.2]], dtype=F64)
GAINS = torch.tensor([0.5, 1.0, 0.7, -0.3, 1.2], dtype=F64)
KEYS = torch.tensor([7, 2, 3, 6, 12])
WHOLE = Brownian(5)


class Cubic(nn.Module):
    """dy/dt = a y^3 - y, and what drives it: rows that start far out blow up."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.9, dtype=F64))

    def forward(self, t: Tensor, y: Tensor, drive: Any = None) -> Tensor:
        rate = self.a * y**3 - y
        if drive is None:
            return rate
        return rate + (drive.unsqueeze(1) if isinstance(drive, Tensor) else drive.derivative(t))


class Noisy(SDE):
    """The same, with noise of each kind."""

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__(noise_type=noise_type, sde_type=sde_type, noise_size=2)
        self.rate = Cubic()
        self.b = nn.Parameter(torch.tensor(0.2, dtype=F64))

    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return self.rate(t, y, *context)

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        g = self.b * torch.cos(y)
        return g if self.noise_type == "diagonal" else g.unsqueeze(2) * torch.tensor([1.0, -0.5], dtype=F64)


ODE, ITO, HEUN = Cubic(), Noisy("diagonal", "ito"), Noisy("general", "stratonovich")
INTEGRAND = Mixed()
PATH = Linear.through(TS[[0, 1, 3, 4]], torch.stack([STATES * k for k in (0.0, 0.2, -0.1, 0.3)], dim=1))


class Inputs:
    """Leaves of all rows, of which a problem takes some."""

    def __init__(self, *, own_times: bool = False, **beside: bool) -> None:
        stretch = torch.linspace(1, 1.5, 5, dtype=F64)[:, None] if own_times else 1.0
        self.y0, self.ts = (x.clone().requires_grad_() for x in (STATES, TS * stretch))
        self.gains = GAINS.clone().requires_grad_()
        self.beside = beside

    def problem(self, field: nn.Module, rows: Tensor, noise: Brownian | None = None) -> Problem:
        ts, own, beside = self.ts, self.gains[rows], self.beside
        problem = Problem(field, self.y0[rows], ts[rows] if ts.dim() == 2 else ts)
        if isinstance(field, SDE):
            problem = replace(problem, noise=noise or Brownian(5, rows))
        if "gain" in beside:
            problem = replace(problem, context=own)
        if "path" in beside:
            path = replace_leaves(PATH, [leaf[rows] for leaf in PATH.leaves()])
            problem = replace(problem, ts=ts.detach(), context=path)
        if "integrand" in beside:
            problem = replace(problem, integrands=((INTEGRAND, own),))
        if "probes" in beside:
            problem = replace(problem, ts=ts.detach()).with_probes(torch.tensor([0.55, 0.03, 0.9], dtype=F64))
        return problem

    def gradients(self, field: nn.Module, loss: Tensor) -> list[Tensor]:
        inputs = [self.y0, self.ts, self.gains, *field.parameters(), *INTEGRAND.parameters()]
        return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


def measure(solution: Solution) -> Tensor:
    return solution.ys.sin().sum() + solution.integrals.square().sum()


STEPS = {"steps": 6, "on_failure": "mask"}
CASES = [
    (ODE, FixedRungeKutta("rk4", **STEPS), Direct(), {}),
    (ODE, FixedRungeKutta("rk4", compile="on", **STEPS), Direct(), {"own_times": True, "integrand": True}),
    (ODE, FixedRungeKutta("euler", compile="on", **STEPS), Checkpointed(), {"gain": True}),
    (ODE, FixedRungeKutta("euler", **STEPS), Checkpointed(), {"path": True, "integrand": True}),
    (ODE, FixedRungeKutta("midpoint", **STEPS), Direct(), {"probes": True}),
    (ODE, FixedRungeKutta("midpoint", **STEPS), Checkpointed(), {"probes": True, "integrand": True}),
    (ODE, FixedRungeKutta("midpoint", **STEPS), Reversible(), {"own_times": True, "gain": True}),
    (ODE, FixedRungeKutta("rk4", **STEPS), Reversible(), {"probes": True, "integrand": True}),
    (ITO, Stochastic("euler", **STEPS), Direct(), {"integrand": True}),
    (ITO, Stochastic("milstein", compile="on", **STEPS), Checkpointed(), {"own_times": True, "gain": True}),
    (ITO, Stochastic("euler", compile="on", **STEPS), Direct(), {"path": True}),
    (ITO, Stochastic("euler", **STEPS), Checkpointed(), {"probes": True}),
    (HEUN, Stochastic("heun", **STEPS), Checkpointed(), {"integrand": True}),
    (HEUN, Stochastic("reversible_heun", **STEPS), Reversible(), {"own_times": True, "integrand": True}),
    (HEUN, Stochastic("reversible_heun", compile="on", **STEPS), Reversible(), {"gain": True}),
    (HEUN, Stochastic("reversible_heun", compile="on", **STEPS), Direct(), {"probes": True}),
]


@pytest.mark.parametrize(("field", "solver", "adjoint", "options"), CASES)
def test_the_other_rows_are_solved_as_if_they_were_alone(field, solver, adjoint, options):
    inputs = Inputs(**options)
    found = adjoint(solver, inputs.problem(field, EVERY, WHOLE))
    alone = adjoint(replace(solver, on_failure="raise"), inputs.problem(field, GOOD))
    assert found.stats.status.tolist() == [0, NON_FINITE, 0, 0, NON_FINITE]
    for a, b in ((found.ys, alone.ys), (found.integrals, alone.integrals)):
        torch.testing.assert_close(a[GOOD], b, rtol=1e-13, atol=1e-13)
        assert a[BAD, 0].isfinite().all() and a[BAD, 4].isnan().all()
    reached = torch.where(found.ys.isnan(), 0.0, found.ys)[BAD].sum()  # is no part of any gradient
    wanted = inputs.gradients(field, measure(alone))
    for a, b in zip(inputs.gradients(field, measure(some(found, GOOD)) + reached), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert wanted[0][GOOD].all()
    assert found.stats.backward_nfe == alone.stats.backward_nfe


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("field", [ODE, ITO])
@torch.no_grad()
def test_a_failed_row_has_its_values_at_the_times_it_reached_and_nan_behind(field, compile):
    solver: Any = (Stochastic if field is ITO else FixedRungeKutta)("euler", steps=10, compile=compile)
    ts = torch.linspace(0, 1, 6, dtype=F64)
    found = solve(field, STATES, ts, solver=replace(solver, on_failure="mask"), noise=noise_of(field, EVERY))
    for row in BAD.tolist():
        for j in range(1, 6):
            rows = torch.tensor([row])
            eager, noise = replace(solver, compile="off"), noise_of(field, rows)
            part = partial(solve, field, STATES[rows], ts[: j + 1], solver=eager, noise=noise)
            if found.ys[row, j].isnan().any():
                assert found.ys[row, j].isnan().all()
                with pytest.raises(SolveError):
                    part()
            else:
                torch.testing.assert_close(found.ys[row, : j + 1], part().ys[0], rtol=1e-13, atol=1e-13)
    reached = found.ys.isfinite().all(dim=2).sum(dim=1)
    assert reached[BAD].tolist() == [2, 1]


def noise_of(field: nn.Module, rows: Tensor) -> Brownian | None:
    return Brownian(5, rows) if isinstance(field, SDE) else None


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_failed_row_counts_the_steps_it_took(compile):
    """A row overflows in as many Euler steps y + h (a y^3 - y) as when they are taken by hand."""
    solver = FixedRungeKutta("euler", steps=10, compile=compile, on_failure="mask")
    y0 = STATES.clone().requires_grad_()
    found, alone = (solve(ODE, y, TS[[0, 4]], solver=solver).stats for y in (y0, y0[GOOD]))
    one, two = (overflows(STATES[row, 0].item()) for row in BAD)
    assert found.accepted.tolist() == [10, one, 10, 10, two] and not found.rejected.any() and two < one < 10
    once = int(alone.nfe[0])
    assert found.nfe.tolist() == [2 * once, once, 2 * once, 2 * once, once]
    assert torch.equal(found.times[GOOD], alone.times) and torch.equal(found.steps[GOOD], alone.steps)
    torch.testing.assert_close(found.steps[1].sum(), found.times[1, -1])
    assert (found.steps[1] != 0).sum() == one and torch.equal(found.attempts.accepted.sum(dim=1), found.accepted)
    left = some(solve(ODE, y0, TS[[0, 4]], solver=solver), GOOD).stats
    assert left.accepted.tolist() == [10] * 3 and torch.equal(left.times, alone.times)


def overflows(y: float) -> int:
    """How many steps from y are finite."""
    count = -1
    while abs(y) < math.inf:
        y, count = y + 0.1 * (0.9 * y * y * y - y), count + 1
    return count


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Reversible()])
@pytest.mark.parametrize("field", [ODE, HEUN])
def test_gradients_are_zero_where_all_rows_failed(field, adjoint):
    solver: Any = Stochastic("reversible_heun", **STEPS) if field is HEUN else FixedRungeKutta("rk4", **STEPS)
    inputs = Inputs(integrand=True)
    found = held(adjoint(solver, inputs.problem(field, BAD)))
    assert (found.stats.status == NON_FINITE).all() and found.ys.isfinite().all() and found.integrals.isfinite().all()
    wanted = [inputs.y0, inputs.ts, inputs.gains, *field.parameters(), *INTEGRAND.parameters()]
    for x in (found.ys, found.integrals):
        assert all(not gradient.any() for gradient in torch.autograd.grad(x.sum(), wanted, retain_graph=True))


@pytest.mark.parametrize("noise", [Brownian(5, KEYS), Brownian(5, KEYS, antithetic=True), Brownian(2**40)])
def test_a_row_keeps_its_noise(noise):
    solver = Stochastic("euler", **STEPS)
    found = solve(ITO, STATES.clone().requires_grad_(), TS, solver=solver, noise=noise)
    with torch.no_grad():
        wanted = solve(ITO, STATES, TS, solver=solver, noise=noise)
    assert found.ys.requires_grad
    torch.testing.assert_close(found.ys, wanted.ys, rtol=1e-13, atol=1e-13, equal_nan=True)
    normals = partial(Brownian.normals, first_step=3, count=2, size=2, dtype=F64, device=KEYS.device)
    assert torch.equal(normals(noise.of(GOOD), batch=3), normals(noise, batch=5)[:, GOOD])


def test_a_row_that_starts_out_of_bounds_and_states_between_steps():
    y0 = STATES.index_fill(0, torch.tensor([4]), torch.nan).requires_grad_()
    solver = FixedRungeKutta("euler", steps=10, on_failure="mask")
    problem = replace(Problem(ODE, y0, TS[[0, 4]]), keep_mesh=True)
    stats = Direct()(solver, problem).stats
    assert stats.accepted[4] == 0 and stats.states.shape == (5, 10, 2)
    count = int(stats.accepted[1])
    assert stats.states[1, :count].isfinite().all() and not stats.states[1, count + 1 :].any()
    assert held(Direct()(solver, problem)).ys[4].eq(0).all()


class Reads(TorchDispatchMode):
    """Counts the numbers, and the shapes, that are read from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", [FixedRungeKutta("rk4", **STEPS), Stochastic("euler", **STEPS)])
def test_without_a_failure_nothing_is_done_again(solver):
    field: Any = ITO if isinstance(solver, Stochastic) else ODE
    problem = Inputs().problem(field, GOOD)
    for integrate in (Direct(), lambda solver, problem: solver.integrate(problem)):
        with Reads() as raises:
            raising = integrate(replace(solver, on_failure="raise"), problem)
        with Reads() as masks:
            masked = held(integrate(solver, problem))
        assert masks.count == raises.count > 0
        assert masked.stats.solved and torch.equal(masked.ys, raising.ys)
        assert torch.equal(masked.stats.nfe, raising.stats.nfe)


def test_all_failed_rows_are_told_where_the_first_of_them_stops():
    with pytest.raises(SolveError, match=r"row 4, in the step of size 0\.1 from time 0\.6 ") as raised:
        solve(ODE, STATES, TS[[0, 4]], solver=FixedRungeKutta("euler", steps=10))
    assert raised.value.status.tolist() == [0, NON_FINITE, 0, 0, NON_FINITE]


def test_a_solver_alone_masks_rows_too():
    inputs = Inputs()
    found = FixedRungeKutta("rk4", **STEPS).integrate(inputs.problem(ODE, EVERY))
    assert inputs.gradients(ODE, found.ys[GOOD].sum())[0].isfinite().all()


@pytest.mark.parametrize("make", [FixedRungeKutta, Stochastic])
def test_other_choices_are_refused(make):
    with pytest.raises(ValueError, match="expected on_failure raise or mask, got 'ignore'"):
        make(on_failure="ignore")
    with pytest.raises(ValueError, match="on_failure=raise for Backsolve"):
        solve(ODE, STATES, TS, solver=FixedRungeKutta(on_failure="mask"), adjoint=Backsolve())
