"""Backsolve: gradients of the exact solution, by every route it offers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.numerics.adjoint import Direct
from ndeflow.numerics.backends import TorchDiffEq, TorchSDE
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.solve import solve
from tests.problems import Mixed, Net, apart, start

TS = torch.tensor([0.0, 0.3, 0.3, 1.5], dtype=torch.float64)
ROWS = torch.stack([TS, TS / 2, torch.zeros(4, dtype=torch.float64)])
TIGHT = RungeKutta("dopri5", 1e-10, 1e-10)


@pytest.mark.parametrize("ts", [TS, ROWS, TS.flip(0)], ids=["shared", "rows", "backward"])
@pytest.mark.parametrize(
    ("adjoint", "solver"),
    [
        (Backsolve(), TIGHT),
        (Backsolve(seminorm=False), TIGHT),
        (Backsolve(solver=RungeKutta("tsit5", 1e-10, 1e-10)), TIGHT),
        (Backsolve(), FixedRungeKutta("rk4", 60)),
    ],
)
def test_gradients_are_directs_to_tolerance(adjoint, solver, ts):
    field, mixed, y0 = Net(), Mixed(), start().requires_grad_()
    own = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    inputs, found = [y0, own, mixed.weight, *field.parameters()], []
    for how in (Direct(), adjoint):
        solution = solve(field, y0, ts, solver=solver, adjoint=how, integrands=[(mixed, own)])
        loss = solution.ys.sin().sum() + solution.integrals.square().sum()
        found.append(torch.autograd.grad(loss, inputs))
    assert all(apart(b, a) < 1e-6 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("ts", [TS[[0, 1, 3]], ROWS[:2], TS.flip(0)], ids=["shared", "rows", "backward"])
def test_gradients_of_times_are_directs_to_tolerance(ts):
    field, times, found = Net(), ts.clone().requires_grad_(), []
    for adjoint in (Direct(), Backsolve()):
        ys = solve(field, start(3 if ts.dim() == 1 else 2), times, solver=TIGHT, adjoint=adjoint).ys
        found.append(torch.autograd.grad(ys.sin().square().sum(), times)[0])
    assert apart(found[1], found[0]) < 1e-5


def test_gradcheck():
    class Ramp(nn.Module):
        def forward(self, t, y, context):
            return torch.tanh(y) * torch.cos(t) + context * y

    def run(y, ts, context):
        return solve(Ramp(), y, ts, solver=TIGHT, adjoint=Backsolve(), context=context).ys

    inputs = (start(2), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in inputs), atol=1e-5, rtol=1e-4)


class Driven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.4, -0.8], [0.2, 0.9]], dtype=torch.float64))

    def forward(self, t, y, path):
        return torch.tanh(y @ self.weight) * path.derivative(t)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("rows", [False, True])
def test_paths_are_crossed_from_knot_to_knot(rows, every):
    knots = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    knots = torch.stack([knots, knots / 2, knots.clamp(max=0.2)]) if rows else knots
    ts = knots if every else knots[..., [0, -1]]
    xs = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    field, y0, found = Driven(), start().requires_grad_(), []
    for adjoint in (Direct(), Backsolve()):
        ys = solve(field, y0, ts, solver=TIGHT, adjoint=adjoint, context=Hermite.through(knots, xs)).ys
        found.append(torch.autograd.grad(ys.sin().sum(), [y0, xs, field.weight]))
    assert all(apart(b, a) < 1e-7 for a, b in zip(*found, strict=True))


class Shaken(nn.Module):
    """A smooth state whose gradient by `force` oscillates: dy/dt = -y + force sin(40 t) at force = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.force, self.calls = nn.Parameter(torch.zeros((), dtype=torch.float64)), 0

    def forward(self, t, y):
        self.calls += 1
        return -y + self.force * torch.sin(40 * t)


def test_the_seminorm_saves_evaluations_and_they_are_counted():
    counts = []
    for seminorm in (True, False):
        field = Shaken()
        solution = solve(field, start(), TS, solver=RungeKutta("dopri5", 1e-6, 1e-6), adjoint=Backsolve(seminorm))
        before = field.calls
        assert solution.stats.nfe[0] == before
        solution.ys.sum().backward()
        assert solution.stats.backward_nfe == [field.calls - before]
        counts += solution.stats.backward_nfe
    assert 0 < 3 * counts[0] < counts[1]


def test_estimates_are_constants_and_second_derivatives_are_refused():
    field, y0 = Net(), start().requires_grad_()
    solution = solve(field, y0, TS, adjoint=Backsolve())
    assert not Backsolve.differentiable_stats
    assert not solution.stats.error.requires_grad and not solution.stats.stiffness.requires_grad
    (grad,) = torch.autograd.grad(solution.ys.square().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_failing_backward_solve_is_named():
    y0 = start().requires_grad_()
    adjoint = Backsolve(solver=RungeKutta("dopri5", 1e-10, 1e-10, max_steps=2))
    solution = solve(Net(), y0, TS, adjoint=adjoint)
    with pytest.raises(SolveError, match="2 steps were not enough at time 1.*raise max_steps"):
        solution.ys.sum().backward()


class Noisy(SDE):
    """An Ornstein-Uhlenbeck process with a learned rate."""

    def __init__(self, sde_type):
        super().__init__(noise_type="diagonal", sde_type=sde_type, noise_size=2)
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def drift(self, t, y):
        return -self.rate * y

    def diffusion(self, t, y):
        return 0.3 * torch.ones_like(y)


def test_solvers_of_other_libraries_run_their_own_adjoint():
    grads = []
    for adjoint in (Direct(), Backsolve()):
        field = Net(width=8)
        solution = solve(field, start(), TS, solver=TorchDiffEq("dopri5", 1e-10, 1e-10), adjoint=adjoint)
        solution.ys.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-8)


def test_an_sde_is_solved_backward_by_torchsde():
    grads = []
    for adjoint in (Direct(), Backsolve()):
        sde = Noisy("stratonovich")
        y0 = torch.ones(3, 2, dtype=torch.float64)
        solver = TorchSDE("reversible_heun", steps=8)
        solution = solve(sde, y0, TS, solver=solver, adjoint=adjoint, noise=Brownian(1))
        solution.ys.square().sum().backward()
        grads.append(sde.rate.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-10)


class Rotating(nn.Module):
    """dz/dt = (i w - k) z."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.w = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (0.4, 2.0))

    def forward(self, t, z):
        return torch.complex(-self.k, self.w) * z


def test_real_parameters_of_a_complex_state_have_real_gradients():
    field, z0 = Rotating(), torch.complex(start(), start().flip(0))
    tight = RungeKutta(rtol=1e-9, atol=1e-9, compile="off")
    found = []
    for adjoint in (Direct(), Backsolve()):
        loss = solve(field, z0, TS, solver=tight, adjoint=adjoint).ys.real.square().sum()
        found.append(torch.stack(torch.autograd.grad(loss, [field.k, field.w])))
    assert found[1].dtype == torch.float64 and apart(found[1], found[0]) < 1e-6


@pytest.mark.parametrize("solver", [RungeKutta(compile="on"), FixedRungeKutta(compile="on")], ids=lambda x: x.method)
def test_steps_to_be_compiled_are_refused(solver):
    with pytest.raises(ValueError, match="got compile=on; leave it auto"):
        solve(Net(), start(), TS, solver=solver, adjoint=Backsolve())
