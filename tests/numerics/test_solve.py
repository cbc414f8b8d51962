"""solve: what it accepts, what it refuses with which cure, integrals beside the state."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import ExactDivergence, Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE, Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import ControlPath, Hermite, Linear
from ndeflow.numerics.solve import pose, solve
from ndeflow.numerics.stochastic import Stochastic
from tests.problems import FORCED, Net, apart, start
from tests.stubs import ones

TS = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": 3}, "field that can be called"),
        ({"y0": torch.ones(3, 2, dtype=torch.int64)}, "floating-point y0"),
        ({"y0": torch.ones(())}, r"shape \(B, \*state\)"),
        ({"y0": torch.ones(0, 2)}, r"B >= 1"),
        ({"ts": torch.arange(3)}, "floating-point ts"),
        ({"ts": torch.ones(2, 3)}, r"ts of shape \(T,\) or \(3, T\)"),
        ({"ts": torch.ones(0)}, "T >= 1"),
        ({"ts": torch.tensor([0.0, torch.nan])}, "finite ts.*padding"),
        ({"ts": torch.tensor([0.0, 1.0, 0.5])}, "increase in every row.*sort"),
        ({"ts": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])}, "increase in every row.*sort"),
        ({"context": torch.ones(2, 1)}, "leaf of context with leading dimension 3"),
        ({"integrands": [nn.Identity()]}, "pairs"),
        ({"integrands": [(nn.Identity(), None)]}, "derive from Integrand"),
        ({"integrands": [(ExactDivergence(), torch.ones(2))]}, "integrand's own context with leading dimension 3"),
        ({"noise": Brownian(0)}, "noise for an SDE only"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(change, message):
    field = Net()
    arguments = {"field": field, "y0": start(), "ts": TS} | change
    with pytest.raises(ValueError, match=message):
        solve(**arguments)
    assert field.calls == 0


def test_a_field_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape of the state \(3, 2\), got \(3, 1\)"):
        solve(lambda t, y: y[:, :1], start(), TS)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Backsolve()])
def test_adjoints_that_look_for_parameters_refuse_functions(adjoint):
    with pytest.raises(ValueError, match=r"nn\.Module.*wrap.*Direct"):
        solve(ones, start(), TS, adjoint=adjoint)


class Walk(SDE):
    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)

    def drift(self, t, y):
        return -y, y.square().sum(dim=1, keepdim=True)

    def diffusion(self, t, y):
        return torch.ones_like(y)


def test_equations_and_solvers_that_do_not_fit_are_refused():
    for solver in (RungeKutta(), FixedRungeKutta()):
        with pytest.raises(ValueError, match="got an SDE"):
            solve(Walk(), start(), TS, solver=solver, noise=Brownian(0))
    with pytest.raises(ValueError, match="got an SDE"):
        solve(Walk(), start(), TS, adjoint=Backsolve(), noise=Brownian(0))


def test_defaults_follow_the_equation():
    assert solve(ones, start(), TS).stats.error is not None
    solution = solve(Walk(), start(), TS, noise=Brownian(0))
    by_name = solve(Walk(), start(), TS, solver=Stochastic(), noise=Brownian(0))
    assert torch.equal(solution.ys, by_name.ys) and solution.integrals.shape == (3, 3, 1)


def test_pose_makes_the_problem_that_solve_solves():
    problem = pose(ones, start(), TS, integrands=[(Speed(), None)])
    solution = solve(ones, start(), TS, integrands=[(Speed(), None)])
    assert isinstance(problem, Problem) and len(problem.integrands) == 1
    assert torch.equal(RungeKutta().integrate(problem).ys, solution.ys)
    assert solution.problem.y0.shape == (3, 2) and torch.equal(solution.ts, TS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [RungeKutta(), FixedRungeKutta(steps=2)])
def test_the_field_gets_time_in_the_states_dtype(dtype, solver):
    seen = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append((t.dtype, t.shape))
        return -y

    solution = solve(field, start(dtype=dtype).view(3, 2, 1), TS.expand(3, -1).float(), solver=solver)
    assert set(seen) == {(dtype, (3, 1, 1))} and solution.ys.dtype == dtype
    seen.clear()
    solve(field, start(dtype=dtype), TS, solver=solver)
    assert set(seen) == {(dtype, ())}


@pytest.mark.parametrize("solver", [RungeKutta(), FixedRungeKutta()])
def test_one_time_or_none_that_moves_gives_the_start(solver):
    for ts in (TS[:1], torch.ones(3, 4)):
        solution = solve(FORCED.field, FORCED.y0, ts, solver=solver)
        assert torch.equal(solution.ys, FORCED.y0.unsqueeze(1).expand(-1, ts.shape[-1], -1))
        assert solution.stats.accepted.tolist() == [0, 0, 0] and solution.stats.times.shape == (3, 0)


class Speed(Integrand):
    """|dy/dt|^2, times its own context where there is one."""

    def forward(self, at, own):
        speed = at.dy.square().flatten(1).sum(dim=1)
        return speed if own is None else speed * own


class WithVolume(nn.Module):
    """dy/dt = -y, and its own integral of the divergence, -2."""

    def forward(self, t, y):
        return -y, torch.full((len(y), 1), -2.0, dtype=y.dtype)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5", 1e-10, 1e-10), FixedRungeKutta("rk4", 200)])
def test_integrals_have_their_closed_form(solver, rows):
    """int |y'|^2 = |y0|^2 (1 - e^(-2t)) / 2 for y' = -y; a field's own dq comes first."""
    ts = TS * torch.tensor([[1.0], [0.5], [0.0]], dtype=torch.float64) if rows else TS
    own = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    solution = solve(WithVolume(), start(), ts, solver=solver, integrands=[(Speed(), None), (Speed(), own)])
    kinetic = start().square().sum(dim=1, keepdim=True) * (1 - torch.exp(-2 * ts.expand(3, -1))) / 2
    exact = torch.stack([-2 * ts.expand(3, -1), kinetic, own[:, None] * kinetic], dim=-1)
    assert apart(solution.integrals, exact) < 1e-8
    assert apart(solution.ys, start().unsqueeze(1) * torch.exp(-ts.expand(3, -1)).unsqueeze(-1)) < 1e-8


def test_integrals_stay_outside_the_error_norm():
    plain = solve(FORCED.field, FORCED.y0, TS)
    beside = solve(FORCED.field, FORCED.y0, TS, integrands=[(Speed(), torch.full((3,), 1e6, dtype=torch.float64))])
    assert torch.equal(plain.stats.steps, beside.stats.steps) and torch.equal(plain.stats.error, beside.stats.error)
    assert torch.equal(plain.stats.stiffness, beside.stats.stiffness) and torch.equal(plain.stats.nfe, beside.stats.nfe)
    assert torch.equal(plain.ys, beside.ys) and plain.integrals.shape == (3, 3, 0)


def test_images_may_have_integrals_and_their_own_times():
    y0, ts = torch.ones(3, 2, 4, 4, dtype=torch.float64), TS * torch.tensor([[1.0], [0.5], [0.0]], dtype=torch.float64)
    solution = solve(lambda t, y: torch.cos(t) * y, y0, ts, integrands=[(Speed(), None)])
    assert solution.ys.shape == (3, 3, 2, 4, 4) and solution.integrals.shape == (3, 3, 1)
    assert apart(solution.ys[:, :, 1, 2, 3], torch.exp(torch.sin(ts))) < 1e-3


class Conditions(NamedTuple):
    path: ControlPath
    gain: Tensor


class Response(nn.Module):
    """A linear response: dX/dt times a gain, off a path in a NamedTuple."""

    def forward(self, t, y, context):
        return context.gain * context.path.derivative(t)


@pytest.mark.parametrize("path", [Linear, Hermite])
@pytest.mark.parametrize("rows", [False, True])
def test_a_solve_stops_at_every_knot(path, rows):
    """y' = g X' integrates to g (X - X0) exactly, whatever the jumps of X' at knots."""
    knots = torch.tensor([0.0, 0.1, 0.7, 1.0, 2.0], dtype=torch.float64)
    knots = torch.stack([knots, knots / 2, knots.clamp(max=0.7)]) if rows else knots
    xs = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gain = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    context = Conditions(path.through(knots, xs), gain)
    solution = solve(Response(), torch.zeros(3, 2, dtype=torch.float64), knots, context=context)
    jumps = torch.where(knots.diff(dim=-1).expand(3, -1).unsqueeze(-1) > 0, xs.diff(dim=1), 0.0)
    exact = gain.unsqueeze(1) * torch.cat([torch.zeros(3, 1, 2, dtype=torch.float64), jumps.cumsum(dim=1)], dim=1)
    assert apart(solution.ys, exact) < 1e-12
    back = solve(Response(), exact[:, -1], knots.flip(-1), context=context)
    assert apart(back.ys.flip(1), exact) < 1e-12


def test_controlled_fields_see_both_ends_of_a_piece_from_inside():
    knots = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    xs = torch.tensor([[0.0, 1.0, -4.0]], dtype=torch.float64).T.view(1, 3, 1)

    class Matrix(nn.Module):
        def forward(self, t, y):
            return y.unsqueeze(-1)

    solution = solve(Controlled(Matrix()), torch.ones(1, 1, dtype=torch.float64), knots,
                     solver=RungeKutta("dopri5", 1e-10, 1e-10), context=Linear.through(knots, xs))  # fmt: skip
    assert apart(solution.ys[0, :, 0], torch.exp(xs[0, :, 0])) < 1e-8
    assert solution.stats.rejected[0] <= 2


def test_a_direct_solve_is_the_default():
    y0 = start().requires_grad_()
    (default,) = torch.autograd.grad(solve(ones, y0, TS).ys.sum(), y0)
    (direct,) = torch.autograd.grad(solve(ones, y0, TS, adjoint=Direct()).ys.sum(), y0)
    assert torch.equal(default, direct)


def test_an_sde_without_noise_draws_its_own_from_the_default_generator():
    paths = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        paths.append(solve(Walk(), start(), TS).ys)
    assert torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[0], paths[2])
