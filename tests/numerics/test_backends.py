"""TorchDiffEq: equal to torchdiffeq and to our own solver; what both backends refuse."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backends import TorchDiffEq, TorchSDE
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE, Controlled
from ndeflow.numerics.paths import Hermite, Linear
from ndeflow.numerics.solution import SolveError

F64 = torch.float64
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Turn(nn.Module):
    """dy/dt = A y with A a rotation's generator: y(t) = (cos t, -sin t; sin t, cos t) y(0)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64))

    def forward(self, t, y):
        return y @ self.matrix.T


class Bend(nn.Module):
    """A nonlinear field with weights, time and, if given, a context of shape (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 5, dtype=F64), nn.Linear(5, 2, dtype=F64)

    def forward(self, t, y, *context):
        shift = context[0] if context else 0.0
        return self.outer(torch.tanh(self.inner(y) + torch.sin(t))) + shift


class Square(Integrand):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(tensor(1.5)[0])

    def forward(self, at, own):
        return self.scale * at.y.square().sum(dim=1) * own[:, 0]


class Conditions(NamedTuple):
    path: Linear
    shift: Tensor


class Driven(nn.Module):
    """A field that reads a path's value and another leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = Bend()

    def forward(self, t, y, context):
        return self.bend(t, y, context.path.value(t)[:, :2] * context.shift)


class Noise(SDE):
    """dy = -y dt + dW on two components."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)

    def drift(self, t, y):
        return -y

    def diffusion(self, t, y):
        return torch.ones_like(y)


def ode(context: object = None, **changes) -> Problem:
    return Problem(**({"field": Bend(), "y0": torch.randn(4, 2, dtype=F64), "ts": tensor(0.0, 0.7, 2.0),
                       "context": context} | changes))  # fmt: skip


def sde(**changes) -> Problem:
    return ode(**({"field": Noise(), "noise": Brownian(3)} | changes))


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, "scipy_solver"])
@pytest.mark.parametrize("backward", [False, True])
def test_every_method_of_torchdiffeq_is_reached_and_solves(method, backward):
    ts = tensor(0.0, -0.5, -1.3) if backward else tensor(0.0, 0.5, 1.3)
    y0 = torch.randn(3, 2, dtype=F64)
    options = {"step_size": 0.01} if method in FIXED else None
    options = {"step_size": 0.01, "max_order": 4} if method == "explicit_adams" else options  # unstable by default
    solver = TorchDiffEq(method, rtol=1e-7, atol=1e-7, options=options)
    with torch.no_grad():
        ys = solver.integrate(Problem(Turn(), y0, ts)).ys
    rotation = torch.stack([ts.cos(), ts.sin(), -ts.sin(), ts.cos()], dim=1).view(3, 2, 2)
    exact = torch.einsum("bi,tij->btj", y0, rotation)
    torch.testing.assert_close(ys, exact, rtol=0, atol=2e-2 if method == "euler" else 1e-3)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_torchdiffeq_gives_its_own_numbers_costs_and_gradients(method):
    problem = ode(y0=torch.randn(4, 2, dtype=F64, requires_grad=True), ts=tensor(0.0, 0.7, 2.0).requires_grad_())
    options = {"step_size": 0.1} if method in FIXED else None
    calls = []

    def counted(t, y):
        calls.append(t)
        return problem.field(t, y)

    ys = torchdiffeq.odeint(counted, problem.y0, problem.ts, rtol=1e-5, atol=1e-6, method=method, options=options)
    count = len(calls)
    solution = Direct()(TorchDiffEq(method, 1e-5, 1e-6, options), problem)
    torch.testing.assert_close(solution.ys, ys.transpose(0, 1), rtol=0, atol=1e-15)
    assert solution.stats.nfe.tolist() == [count + 1] * 4
    inputs = [problem.y0, problem.ts, *problem.field.parameters()]
    ours, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (solution.ys, ys))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_torchdiffeq_agrees_with_our_solver_everywhere():
    grid = tensor(0.0, 0.4, 1.0, 2.0)
    leaves = [torch.randn(4, 2, dtype=F64, requires_grad=True) for _ in range(2)]
    values, own = (torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((4, 4, 2), (4, 1)))
    field, integrand = Driven(), Square()

    def everything(solve):
        context = Conditions(Linear.through(grid, values), leaves[1])
        problem = Problem(field, leaves[0], tensor(0.0, 0.7, 0.7, 1.0, 1.8), context, ((integrand, own),))
        solution = solve(problem.with_probes(tensor(0.3, 1.9 - 0.5, 0.0)))
        loss = solution.ys.square().sum() + solution.integrals.sin().sum()
        inputs = [*leaves, values, own, *field.parameters(), *integrand.parameters()]
        return solution.ys, solution.integrals, *torch.autograd.grad(loss, inputs)

    tight = TorchDiffEq("dopri5", 1e-9, 1e-9)
    ours = everything(RungeKutta("dopri5", 1e-9, 1e-9).integrate)
    torch.testing.assert_close(everything(tight.integrate), ours, rtol=1e-5, atol=1e-5)
    for seminorm in (False, True):
        adjoint = everything(lambda problem, seminorm=seminorm: tight.integrate_adjoint(problem, seminorm))
        torch.testing.assert_close(adjoint, ours, rtol=1e-5, atol=1e-5)


def test_a_controlled_equation_is_solved_piece_by_piece():
    class Weights(nn.Module):
        def forward(self, t, y):
            return torch.tanh(y).unsqueeze(-1) * torch.ones(2, dtype=F64)

    path = Hermite.through(tensor(0.0, 0.5, 1.1, 2.0), torch.randn(4, 4, 2, dtype=F64))
    problem = ode(path, field=Controlled(Weights()), ts=tensor(0.2, 2.0))
    ours = RungeKutta("dopri5", 1e-9, 1e-9).integrate(problem)
    theirs = TorchDiffEq("dopri5", 1e-9, 1e-9).integrate(problem)
    torch.testing.assert_close(theirs.ys, ours.ys, rtol=1e-7, atol=1e-7)
    for knot in (0.5, 1.1):
        assert (theirs.stats.times[0] - knot).abs().min() < 1e-12, "a step starts at each knot"


def test_torchdiffeqs_adjoint_counts_a_shared_upstream_graph_once():
    encoder = nn.Linear(2, 2, dtype=F64)

    class Recoded(nn.Module):
        """Reads a context that `encoder` made, and `encoder` itself."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, t, y, context):
            return torch.tanh(self.encoder(y)) + context

    x, y0, field = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64), Recoded()

    def gradients(solve):
        ys = solve(Problem(field, y0, tensor(0.0, 1.0), encoder(x))).ys
        return torch.autograd.grad(ys.square().sum(), list(encoder.parameters()))

    tight = TorchDiffEq("dopri5", 1e-10, 1e-10)
    exact = gradients(tight.integrate)
    torch.testing.assert_close(gradients(lambda p: tight.integrate_adjoint(p, True)), exact, rtol=1e-6, atol=1e-7)


def test_torchdiffeqs_adjoint_differentiates_times_and_reports_its_cost():
    problem = ode(ts=tensor(0.0, 0.7, 2.0).requires_grad_())
    tight = TorchDiffEq("dopri5", 1e-10, 1e-10)
    exact = torch.autograd.grad(tight.integrate(problem).ys.square().sum(), problem.ts)
    solution = tight.integrate_adjoint(problem, True)
    assert solution.stats.backward_nfe == [0]
    torch.testing.assert_close(torch.autograd.grad(solution.ys.square().sum(), problem.ts), exact, rtol=1e-6, atol=0)
    assert solution.stats.backward_nfe[0] > 0


def test_the_seminorm_saves_evaluations():
    cost = []
    for seminorm in (False, True):
        torch.manual_seed(0)
        problem = ode(ts=tensor(0.0, 10.0))
        solution = TorchDiffEq("dopri5", 1e-8, 1e-8).integrate_adjoint(problem, seminorm)
        (1000 * solution.ys[:, -1]).square().sum().backward()
        cost.append(solution.stats.backward_nfe[0])
    assert cost[1] < cost[0]


def test_integrals_stay_outside_torchdiffeqs_error_norm():
    class Rough(Integrand):
        def forward(self, at, own):
            return torch.sin(200 * at.t) * at.y[:, 0]

    plain = ode()
    with_integral = plain.with_integrand(Rough())
    a, b = (TorchDiffEq("bosh3", 1e-4, 1e-4).integrate(p) for p in (plain, with_integral))
    assert a.stats.nfe.tolist() == b.stats.nfe.tolist()
    torch.testing.assert_close(a.ys, b.ys)
    assert b.integrals.shape == (4, 3, 1)


def test_torchdiffeq_reports_its_mesh_in_either_direction():
    for sign in (1.0, -1.0):
        problem = ode(ts=sign * tensor(0.0, 1.0, 2.0), keep_mesh=True)
        stats = TorchDiffEq("bosh3", 1e-6, 1e-6).integrate(problem).stats
        accepted = int(stats.accepted[0])
        assert stats.times.shape == stats.steps.shape == (4, accepted) and stats.states.shape == (4, accepted, 2)
        torch.testing.assert_close(stats.states[:, 0], problem.y0)
        torch.testing.assert_close(stats.times[0].diff(), stats.steps[0, :-1], rtol=1e-6, atol=1e-9)
        last, size = sign * stats.times[0, -1], sign * stats.steps[0, -1]
        assert last < 2 <= last + size


def test_float32_and_states_of_any_shape_and_equal_times_work():
    class Decay(nn.Module):
        def forward(self, t, y):
            return -y

    y0 = torch.randn(3, 2, 4)
    for method in ("dopri5", "rk4", "implicit_adams"):
        options = None if method == "dopri5" else {"step_size": 0.05}
        solver = TorchDiffEq(method, options=options)
        ys = solver.integrate(Problem(Decay(), y0, torch.tensor([1.0, 1.0, 2.0, 2.0]))).ys
        assert ys.dtype == torch.float32
        torch.testing.assert_close(ys[:, 3], y0 * math.exp(-1), rtol=1e-3, atol=1e-3)
        assert torch.equal(ys[:, 1], y0) and torch.equal(ys[:, 2], ys[:, 3])
        assert torch.equal(solver.integrate(Problem(Decay(), y0, torch.tensor([1.0, 1.0]))).ys[:, 1], y0)


def test_torchdiffeqs_failures_name_time_and_cure():
    class Blowup(nn.Module):
        def forward(self, t, y):
            return y.square()

    problem = Problem(Blowup(), torch.ones(2, 1, dtype=F64), tensor(0.0, 2.0))
    with pytest.raises(SolveError, match=r"near time (1|0\.99).*step size.*bound the field"):
        TorchDiffEq().integrate(problem)
    with pytest.raises(SolveError, match=r"non-finite in row 0 by time 2 .*bound the field"):
        TorchDiffEq("euler", options={"step_size": 0.01}).integrate(problem)


def test_what_cannot_be_solved_is_refused_with_the_cure():
    rows = tensor(0.0, 1.0).expand(4, 2)
    own_knots = Linear.through(tensor(0.0, 1.0).expand(4, 2), torch.randn(4, 2, 2, dtype=F64))
    for solver, problem, message in (
        (TorchDiffEq(), ode(ts=rows), r"shared by all rows.*RungeKutta\(\)"),
        (TorchDiffEq(), ode(Conditions(own_knots, torch.ones(4, 2, dtype=F64)), field=Driven()), "knots for each row"),
        (TorchDiffEq(), sde(), r"use TorchSDE\(\)"),
        (TorchDiffEq("scipy_solver"), ode(), "cannot record scipy_solver"),
        (TorchSDE(), sde(ts=rows), r"Stochastic\(\)"),
        (TorchSDE(), ode(), "RungeKutta"),
        (TorchSDE(), sde(ts=tensor(1.0, 0.0)), "reversed time"),
        (TorchSDE(), sde(noise=None), "noise=Brownian"),
        (TorchSDE(), sde(keep_mesh=True), r"use Stochastic\(\)"),
        (TorchSDE(adaptive=True), sde(noise=Brownian(3, antithetic=True)), "adaptive=False"),
    ):
        with pytest.raises(ValueError, match=message):
            solver.integrate(problem)
    with pytest.raises(ValueError, match="torchdiffeq among dopri8"):
        TorchDiffEq("tsit6")
    with pytest.raises(ValueError, match="torchsde among euler"):
        TorchSDE("rk4")
    with pytest.raises(ValueError, match="at least 1 step"):
        TorchSDE(steps=0)
    with pytest.raises(ValueError, match="detach ts"):
        TorchSDE().integrate_adjoint(sde(ts=tensor(0.0, 1.0).requires_grad_()), True)
    with pytest.raises(ValueError, match="nn.Module"):
        TorchDiffEq().integrate_adjoint(ode(field=lambda t, y: -y), True)


@pytest.mark.parametrize("solver", [TorchDiffEq(), TorchSDE()])
def test_checkpointed_and_single_steps_are_refused(solver):
    problem = ode() if isinstance(solver, TorchDiffEq) else sde()
    with pytest.raises(ValueError, match="use Direct"):
        Checkpointed()(solver, problem)
    with pytest.raises(ValueError, match="steps of its own"):
        solver.step(problem, problem.ts[0], problem.y0, problem.ts[1])


def test_the_libraries_are_imported_when_first_used():
    code = (
        "import sys, ndeflow.numerics.backends as b; assert not {'torchdiffeq', 'torchsde', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
