"""FixedRungeKutta: order, exact counts, save times, probes, failures."""

from __future__ import annotations

import pytest
import torch
from torchdiffeq import odeint

from ndeflow.contracts import Problem
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.solve import solve
from tests.problems import FORCED, Net, apart, order, start

METHODS = {"euler": 1, "midpoint": 2, "rk4": 4}


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("method", "expected"), METHODS.items())
def test_solves_converge_with_their_order(method, expected):
    ts, counts = times(0.0, 2.0), (32, 48, 64, 96)
    exact = FORCED.exact(ts.expand(3, -1), FORCED.y0)
    errors = [
        float((solve(FORCED.field, FORCED.y0, ts, solver=FixedRungeKutta(method, n)).ys - exact).abs().max())
        for n in counts
    ]
    assert order([1 / n for n in counts], errors) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_steps_are_torchdiffeqs(method):
    field, ts = Net(), torch.linspace(0, 2, 9, dtype=torch.float64)
    ys = odeint(field, start(), ts, method=method).transpose(0, 1)
    assert apart(solve(field, start(), ts, solver=FixedRungeKutta(method)).ys.detach(), ys.detach()) < 1e-14


@pytest.mark.parametrize(("method", "stages"), {"euler": 1, "midpoint": 2, "rk4": 4}.items())
def test_counts_are_exact(method, stages):
    field = Net()
    stats = solve(field, start(), times(0.0, 0.5, 0.5, 2.0), solver=FixedRungeKutta(method, 3)).stats
    assert field.calls == stats.nfe[0] == 2 * 3 * stages  # the empty interval costs nothing
    assert stats.accepted.tolist() == [6, 6, 6] and stats.rejected.tolist() == [0, 0, 0]
    assert torch.allclose(stats.steps, times(1 / 6, 1 / 6, 1 / 6, 0.5, 0.5, 0.5).expand(3, -1))
    assert stats.error is None and stats.stiffness is None


def test_rows_take_their_own_steps():
    ts = torch.stack([times(0.0, 0.5, 2.0), times(0.0, 1.0, 1.0), times(0.0, 0.0, 0.0)]).requires_grad_()
    solver = FixedRungeKutta("rk4", 20)
    ys = solve(FORCED.field, FORCED.y0, ts, solver=solver).ys
    assert apart(ys.detach(), FORCED.exact(ts.detach(), FORCED.y0)) < 1e-6
    alone = solve(FORCED.field, FORCED.y0[:1], ts[0].detach(), solver=solver).ys
    assert apart(ys[:1].detach(), alone) < 1e-15
    (grad,) = torch.autograd.grad(ys.sum(), ts)
    assert grad.isfinite().all()
    assert torch.allclose(grad[0, 2], FORCED.field(ts[0, 2], ys[0, 2]).sum(), rtol=1e-4)


def test_backward_in_time_comes_back():
    there = solve(FORCED.field, FORCED.y0, times(0.0, 2.0), solver=FixedRungeKutta("rk4", 40)).ys[:, -1]
    back = solve(FORCED.field, there, times(2.0, 0.0), solver=FixedRungeKutta("rk4", 40)).ys[:, -1]
    assert apart(back, FORCED.y0) < 1e-6


def test_probes_are_interpolated_with_order_four():
    errors, counts = [], (8, 12, 16, 24)
    for n in counts:
        problem = Problem(FORCED.field, FORCED.y0, times(0.0, 2.0)).with_probes(torch.linspace(0, 2, 41).double())
        solution = FixedRungeKutta("rk4", n).integrate(problem)
        exact = FORCED.exact(solution.ts.expand(3, -1), FORCED.y0)
        errors.append(float((solution.ys - exact).abs().max()))
        assert solution.stats.nfe[0] == 4 * n + 1
    assert order([1 / n for n in counts], errors) == pytest.approx(4, abs=0.3)


class Driven(torch.nn.Module):
    """dy/dt = X(t)."""

    def forward(self, t, y, path):
        return path.value(t)


def test_a_path_is_crossed_from_knot_to_knot():
    knots = times(0.0, 0.3, 1.0, 2.0)
    xs = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path, solver = Linear.through(knots, xs), FixedRungeKutta("midpoint", 1)
    area = ((xs[:, 1:] + xs[:, :-1]) / 2 * knots.diff().view(1, 3, 1)).cumsum(dim=1)
    solution = solve(Driven(), torch.zeros(3, 2, dtype=torch.float64), knots[[0, 2, 3]], solver=solver, context=path)
    assert apart(solution.ys[:, 1:], area[:, 1:]) < 1e-14
    assert solution.stats.accepted[0] == 3
    with pytest.raises(ValueError, match="save times that are knots"):
        solve(Driven(), torch.zeros(3, 2, dtype=torch.float64), times(0.0, 0.5, 2.0), solver=solver, context=path)


def test_a_non_finite_state_is_named():
    with pytest.raises(SolveError, match=r"row 1.*from time 0\.5.*euler"):
        solve(
            lambda t, y: torch.where((t > 0.4) & (y > 0.9), torch.inf, torch.ones_like(y)),
            times(0.0, 0.8).unsqueeze(1),
            times(0.0, 1.0),
            solver=FixedRungeKutta("euler", 2),
        )


@pytest.mark.parametrize(("settings", "message"), [({"method": "dopri5"}, "euler, midpoint"), ({"steps": 0}, "1 step")])
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FixedRungeKutta(**settings)


def test_a_state_that_is_not_asked_to_move_is_given_back():
    y0 = torch.tensor([[torch.nan], [1.0]])
    ys = solve(lambda t, y: -y, y0, torch.zeros(1), solver=FixedRungeKutta()).ys
    assert torch.equal(ys[1], y0[1:]) and ys[0].isnan().all()


def test_probes_behind_a_repeated_first_time():
    y0, ts = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    problem = Problem(lambda t, y: -y, y0, ts).with_probes(ts[2:] / 2)
    ys = FixedRungeKutta("rk4", 10).integrate(problem).ys[0, :, 0]
    assert torch.allclose(ys, torch.exp(-torch.cat([ts, ts[2:] / 2])), rtol=1e-6)


def test_the_mesh_is_not_that_of_times_written_later():
    ts = times(0.0, 0.5, 1.0).repeat(3, 1)
    stats = solve(Net(), start(), ts, solver=FixedRungeKutta()).stats
    ts += 100.0
    assert torch.equal(stats.times, times(0.0, 0.5).repeat(3, 1))
