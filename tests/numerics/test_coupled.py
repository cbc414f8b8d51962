"""The coupled method: its formula, its order, and its output between steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndeflow.numerics.coupled import Coupled
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.marching import Marching
from ndeflow.numerics.solution import Solution
from ndeflow.numerics.solve import pose
from ndeflow.numerics.trace import solution
from tests.problems import PROBLEMS, Net, apart, order, start

TS = torch.tensor([0.0, 0.3, 1.5], dtype=torch.float64)


def coupled(solver: Marching, coupling: float, field, y0: Tensor, ts: Tensor, **more) -> Solution:
    """The coupled solve, recorded by autograd."""
    probes = more.pop("probes", None)
    problem = pose(field, y0, ts, **more)
    system = solver.system(problem if probes is None else problem.with_probes(probes))
    return solution(solver, system, Coupled(solver, coupling).march(system)[0])


def psi(solver: Marching, field, t: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """The increment of one step of the base method."""
    return solver.step(pose(field, y, t.expand(1)), t, y, h).y - y


@pytest.mark.parametrize("solver", [RungeKutta("dopri5", 1e-6, 1e-6), FixedRungeKutta("midpoint", 5)])
def test_steps_follow_the_published_formula(solver):
    field, c = Net().requires_grad_(False), 0.9
    found = coupled(solver, c, field, start(), TS)
    y = z = start()
    for t, h in zip(found.stats.times[0], found.stats.steps[0], strict=True):
        y = c * y + (1 - c) * z + psi(solver, field, t, z, h)
        z = z - psi(solver, field, t + h, y, -h)
    assert len(found.stats.times[0]) > 4
    assert apart(found.ys[:, -1], y) < 1e-14


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(
    ("method", "expected", "coupling"),
    [
        ("euler", 1, 0.5),
        ("euler", 1, 0.9),  # nearer 1 errors cancel, and the order shows only over thousands of steps
        ("midpoint", 2, 0.5),
        ("midpoint", 2, 0.999),
        ("rk4", 4, 0.9),
        ("rk4", 4, 0.999),
    ],
)
def test_the_order_is_that_of_the_base_method(method, expected, coupling, problem):
    ts, counts = torch.tensor([0.0, 1.0], dtype=torch.float64), [32, 64, 128, 256]
    exact = problem.exact(ts.expand(3, -1), problem.y0)
    errors = [
        apart(coupled(FixedRungeKutta(method, n), coupling, problem.field, problem.y0, ts).ys, exact) for n in counts
    ]
    assert order([1 / n for n in counts], errors) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("solver", [RungeKutta("bosh3", 1e-6, 1e-6), RungeKutta("dopri5", 1e-7, 1e-7)])
def test_tolerances_hold_at_save_times_and_between(solver):
    problem = PROBLEMS["forced"]
    ts = torch.linspace(0, 3, 40, dtype=torch.float64)
    found = coupled(solver, 0.99, problem.field, problem.y0, ts)
    error = apart(found.ys, problem.exact(ts.expand(3, -1), problem.y0))
    assert 0 < error < 200 * solver.rtol
    loose = type(solver)(solver.method, 1e-3, 1e-3)
    more = apart(coupled(loose, 0.99, problem.field, problem.y0, ts).ys, problem.exact(ts.expand(3, -1), problem.y0))
    assert more > 10 * error
    assert (found.stats.error.square().mean(dim=0).sqrt() <= 1).all()


def test_dense_output_meets_the_ends_of_the_steps():
    """Save times at the mesh give the states that the recursion goes through."""
    solver, field = RungeKutta("dopri5", 1e-5, 1e-5), Net(gain=2.0).requires_grad_(False)
    mesh = coupled(solver, 0.8, field, start(), TS).stats.times[0]
    wanted, y = [], start()
    z = y
    for t, h in zip(mesh, [*mesh.diff(), TS[-1] - mesh[-1]], strict=True):
        wanted.append(y)
        y = 0.8 * y + 0.2 * z + psi(solver, field, t, z, h)
        z = z - psi(solver, field, t + h, y, -h)
    found = coupled(solver, 0.8, field, start(), TS, probes=mesh)
    assert apart(found.ys[:, len(TS) :], torch.stack(wanted, dim=1)) < 1e-14


def test_rows_that_stand_still_stay_where_they_are():
    ts = torch.stack([TS, TS.clamp(max=0.3), torch.zeros(3, dtype=torch.float64)])
    for solver in (RungeKutta("heun", 1e-3, 1e-3), FixedRungeKutta("euler", 3)):
        ys = coupled(solver, 0.5, Net().requires_grad_(False), start(), ts).ys
        assert apart(ys[2], start()[2:].expand(3, -1)) < 1e-15
    assert apart(ys[1, 2], ys[1, 1]) < 1e-15


def test_evaluations_are_two_steps_of_the_base_method():
    field = Net()
    found = coupled(FixedRungeKutta("rk4", 4), 0.99, field, start(), TS)
    assert field.calls == found.stats.nfe[0] == 2 * 4 * 8
    field = Net()
    stats = coupled(RungeKutta("dopri5"), 0.99, field, start(), TS[[0, 2]]).stats
    assert field.calls == stats.nfe[0] == 14 * (stats.accepted[0] + stats.rejected[0]) + 1
