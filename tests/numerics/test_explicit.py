"""RungeKutta: order, dense output, the loop's decisions, cost, failures."""

from __future__ import annotations

import math

import pytest
import torch
from torchdiffeq import odeint

from ndeflow.contracts import Problem
from ndeflow.numerics import stiffness
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.controllers import PI
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.solve import solve
from tests.problems import FORCED, LOGISTIC, PROBLEMS, Net, apart, order, start
from tests.stubs import Scripted, ones

METHODS = {"heun": 2, "bosh3": 3, "dopri5": 5, "tsit5": 5}


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def march(solver: RungeKutta, steps: int) -> torch.Tensor:
    """The end of `steps` equal public steps over [0, 10]."""
    problem = Problem(FORCED.field, FORCED.y0, times(0.0, 10.0))
    y, carry, h = FORCED.y0, None, times(10.0 / steps)[0]
    for n in range(steps):
        step = solver.step(problem, n * h, y, h, carry)
        y, carry = step.y, step.carry
    return y


@pytest.mark.parametrize(("method", "expected"), METHODS.items())
def test_steps_converge_with_their_order(method, expected):
    exact, counts = FORCED.exact(times(10.0).expand(3, 1), FORCED.y0)[:, 0], (96, 128, 192)
    errors = [float((march(RungeKutta(method), n) - exact).norm()) for n in counts]
    assert order([1 / n for n in counts], errors) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize(("method", "expected"), {"heun": 3, "bosh3": 4, "dopri5": 5, "tsit5": 5}.items())
def test_dense_output_has_its_local_order(method, expected):
    """The largest error within one step of size h is O(h^p)."""
    sizes, errors = [h * (1 if expected == 5 else 0.3) for h in (0.2, 0.15, 0.1, 0.08)], []
    y0 = FORCED.exact(times(0.8).expand(3, 1), FORCED.y0)[:, 0]
    for h in sizes:
        ts = 0.8 + h * torch.linspace(0, 1, 9, dtype=torch.float64)
        solution = solve(FORCED.field, y0, ts, solver=OneStep(method))
        errors.append(float((solution.ys - FORCED.exact(ts.expand(3, 9), FORCED.y0)).abs().max()))
        assert solution.stats.accepted[0] == 1
    assert order(sizes, errors) == pytest.approx(expected, abs=0.25)


class OneStep(RungeKutta):
    """One step over the whole span, always accepted."""

    def start(self, leg, z, slope):
        return torch.ones_like(leg.start)

    def estimated(self, *arguments):
        step = super().estimated(*arguments)
        ratio = torch.zeros_like(step.ratio)
        return step._replace(ratio=ratio, norms=self.norms(ratio, step.stiffness))


def test_interpolant_of_tsit5_is_its_free_one():
    """The quartic through the midpoint repeats Tsitouras's polynomials b_i(theta), here at theta = 0.3."""
    th = 0.3
    b = [
        -1.0530884977290216 * th * (th - 1.3299890189751412) * (th**2 - 1.4364028541716351 * th + 0.7139816917074209),
        0.1017 * th**2 * (th**2 - 2.1966568338249754 * th + 1.2949852507374631),
        2.490627285651252793 * th**2 * (th**2 - 2.38535645472061657 * th + 1.57803468208092486),
        -16.54810288924490272 * (th - 1.21712927295533244) * (th - 0.61620406037800089) * th**2,
        47.37952196281928122 * (th - 1.203071208372362603) * (th - 0.658047292653547382) * th**2,
        -34.87065786149660974 * (th - 1.2) * (th - 0.666666666666666667) * th**2,
        2.5 * (th - 1) * (th - 0.6) * th**2,
    ]
    stages = []

    def recorded(t, y):
        stages.append(LOGISTIC.field(t, y))
        return stages[-1]

    got = solve(recorded, LOGISTIC.y0, times(0.0, 0.3, 1.0), solver=OneStep("tsit5")).ys[:, 1]
    assert apart(got, LOGISTIC.y0 + sum(w * k for w, k in zip(b, stages, strict=True))) < 1e-13


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_adaptive_solves_reach_their_tolerance_at_all_times(method, name):
    case, ts = PROBLEMS[name], torch.linspace(0, 4, 23, dtype=torch.float64)
    tolerance = 1e-5 if method == "heun" else 1e-7
    ys = solve(case.field, case.y0, ts, solver=RungeKutta(method, tolerance, tolerance)).ys
    assert float((ys - case.exact(ts.expand(3, -1), case.y0)).abs().max()) < 60 * tolerance


@pytest.mark.parametrize("controller", [RungeKutta().controller, PI()])
def test_backward_in_time_comes_back(controller):
    solver = RungeKutta("dopri5", 1e-9, 1e-9, controller=controller)
    ts = times(0.0, 0.7, 2.0)
    there = solve(FORCED.field, FORCED.y0, ts, solver=solver).ys
    back = solve(FORCED.field, there[:, -1], ts.flip(0), solver=solver)
    assert apart(back.ys.flip(1), there) < 1e-7
    assert (back.stats.steps < 0).all()


@pytest.mark.parametrize("horizon", [1.0, 5.0])
def test_values_and_cost_are_torchdiffeqs(horizon):
    field, y0, ts = Net(gain=2.0), start(32), torch.linspace(0, horizon, 11, dtype=torch.float64)
    ys = odeint(field, y0, ts, rtol=1e-6, atol=1e-6, method="dopri5").transpose(0, 1)
    theirs, field.calls = field.calls, 0
    solution = solve(field, y0, ts, solver=RungeKutta("dopri5", 1e-6, 1e-6))
    assert apart(solution.ys.detach(), ys.detach()) < 1e-5
    assert abs(field.calls - theirs) <= 12


@pytest.mark.parametrize(("method", "stages"), {"heun": 3, "bosh3": 4, "dopri5": 7, "tsit5": 7}.items())
def test_evaluations_are_counted_exactly_and_save_times_are_free(method, stages):
    field = Net()
    for count in (2, 40):
        field.calls = 0
        stats = solve(field, start(), torch.linspace(0, 3, count).double(), solver=RungeKutta(method, 1e-4, 1e-6)).stats
        tries = int(stats.accepted[0] + stats.rejected[0])
        assert field.calls == stats.nfe[0] == 2 + (stages - 1) * tries
    assert stats.times.shape == stats.steps.shape == stats.error.shape == (3, int(stats.accepted[0]))
    assert torch.allclose(stats.times[:, 1:], (stats.times + stats.steps)[:, :-1])
    assert torch.allclose((stats.times + stats.steps)[:, -1], times(3.0))


def test_loop_follows_a_script_of_ratios():
    script = (0.5, 32.0, math.nan, 0.5, 0.0, 0.5)
    solver = Scripted(script=script, first=0.01, taken=[])
    solution = solve(ones, start(), times(0.0, 1.0), solver=solver)
    h = [0.01]
    for ratio in script[:5]:
        h.append(h[-1] * solver.controller.factor(ratio, 1.0, 5))
    t = [0.0, 0.01, 0.01, 0.01, 0.01 + h[3], 0.01 + h[3] + h[4]]
    for (at, size), t_n, h_n in zip(solver.taken, t, h, strict=False):
        assert (at, size) == (pytest.approx(t_n), pytest.approx(h_n))
    assert (solution.stats.accepted[0], solution.stats.rejected[0]) == (len(solver.taken) - 2, 2)
    assert sum(solver.taken[-1]) == pytest.approx(1.0)
    assert torch.allclose(solution.ys[:, -1], start() + 1)


def test_last_step_ends_exactly_and_is_stretched_rather_than_followed_by_a_sliver():
    solver = Scripted(first=0.995, taken=[])
    solve(ones, start(), times(0.0, 1.0), solver=solver)
    assert solver.taken == [(0.0, 1.0)]


def test_error_is_each_rows_scaled_norm_and_the_batch_is_judged_by_its_mean():
    solver = RungeKutta("dopri5", 1e-5, 1e-7)
    problem = Problem(Net(gain=3.0), start(), times(0.0, 1.0))
    step = solver.step(problem, times(0.2)[0], problem.y0, times(0.3)[0])
    scale = 1e-7 + 1e-5 * torch.maximum(problem.y0.abs(), step.y.abs())
    assert torch.allclose(step.ratio, (step.error / scale).square().mean(dim=1).sqrt())
    stats = solve(problem.field, problem.y0, problem.ts, solver=solver).stats
    assert (stats.error.square().mean(dim=0) <= 1).all()


@pytest.mark.parametrize(
    "adjoint", [Direct(), Checkpointed(), Backsolve(), Reversible()], ids=lambda a: type(a).__name__
)
def test_norms_are_those_of_the_estimates_of_rows_that_step_together(adjoint):
    for method in ("bosh3", "dopri5"):
        stats = solve(Net(), start(), times(0.0, 1.0), solver=RungeKutta(method), adjoint=adjoint).stats
        for norms, estimate in ((stats.error_norms, stats.error), (stats.stiffness_norms, stats.stiffness)):
            assert norms is estimate is None or torch.allclose(norms, estimate.norm(dim=0))
        assert stats.stiffness is None or len(stats.stiffness_norms) == stats.accepted[0] > 1
    apart = RungeKutta(batching="per_sample")
    assert solve(Net(), start(), times(0.0, 1.0), solver=apart).stats.error_norms is None


def test_stiffness_of_a_linear_field_is_its_rate():
    rates = torch.tensor([[1.0], [30.0], [200.0]], dtype=torch.float64)
    for method in ("dopri5", "tsit5"):
        stats = solve(
            lambda t, y: -rates * y, torch.ones_like(rates), times(0.0, 0.05), solver=RungeKutta(method)
        ).stats
        assert torch.allclose(stats.stiffness[:, 0], rates[:, 0], rtol=1e-4)
    for method in ("heun", "bosh3"):
        assert solve(FORCED.field, FORCED.y0, times(0.0, 1.0), solver=RungeKutta(method)).stats.stiffness is None


def test_estimates_have_finite_gradients_where_they_vanish():
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    stats = solve(lambda t, y: y @ weight, start(), times(0.0, 1.0)).stats
    (grad,) = torch.autograd.grad(stats.error.sum() + stats.stiffness.sum(), weight)
    assert grad.isfinite().all()


def stiffness_gradient(solver: RungeKutta, dtype: torch.dtype, gain: float) -> torch.Tensor:
    field = Net(width=32, dtype=dtype, gain=gain)
    stats = solve(field, start(16, dtype=dtype), torch.tensor([0.0, 1.0]), solver=solver).stats
    return torch.cat([g.double().flatten() for g in torch.autograd.grad(stats.stiffness.mean(), field.parameters())])


@pytest.mark.parametrize("gain", [1.0, 2.0, 3.0])
def test_float32_gradient_of_stiffness_is_float64s(gain):
    """On one step that resolves the field, each precision with its own floors: within 5 %."""
    wide, narrow = (stiffness_gradient(OneStep(), dtype, gain) for dtype in (torch.float64, torch.float32))
    assert float((narrow - wide).norm() / wide.norm()) < 0.05


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_floors_keep_rounding_out_of_the_gradient_of_stiffness(gain, monkeypatch):
    """Tiny first steps included, float32 agrees with float64 under the same floors."""
    monkeypatch.setattr(stiffness, "floor", lambda dtype: torch.finfo(torch.float32).eps ** (2 / 3))
    wide, narrow = (stiffness_gradient(RungeKutta(), dtype, gain) for dtype in (torch.float64, torch.float32))
    assert float((narrow - wide).norm() / wide.norm()) < 0.05


def test_rows_with_their_own_times_and_padding():
    """Rows cross by common fractions; a row of one repeated time stands still, with finite gradients."""
    ends = times(3.0, 1.0, 0.0)
    ts = torch.linspace(0, 1, 9, dtype=torch.float64) * ends.unsqueeze(1)
    ts[1, 5:] = 1.0
    ts.requires_grad_()
    y0 = FORCED.y0.clone().requires_grad_()
    solution = solve(FORCED.field, y0, ts, solver=RungeKutta("dopri5", 1e-8, 1e-8))
    exact = FORCED.exact(ts, y0)
    assert apart(solution.ys.detach(), exact.detach()) < 1e-6
    assert (solution.ys[2] == y0[2]).all()
    grads = torch.autograd.grad(solution.ys.square().sum(), (y0, ts))
    expected = torch.autograd.grad(exact.square().sum(), (y0, ts))
    assert all(g.isfinite().all() for g in grads)
    assert apart(grads[0], expected[0]) < 1e-6
    assert apart(grads[1][:2, 1:], expected[1][:2, 1:]) < 1e-4


def test_padded_rows_do_not_loosen_the_tolerance():
    alone = solve(FORCED.field, FORCED.y0[:1], times(0.0, 3.0), solver=RungeKutta("dopri5", 1e-6, 1e-6))
    ts = torch.zeros(3, 2, dtype=torch.float64)
    ts[0, 1] = 3.0
    padded = solve(FORCED.field, FORCED.y0, ts, solver=RungeKutta("dopri5", 1e-6, 1e-6))
    assert padded.stats.accepted[0] == alone.stats.accepted[0]
    assert torch.allclose(padded.ys[0], alone.ys[0], rtol=1e-9)


def test_mesh_states_are_kept_on_request():
    problem = Problem(FORCED.field, FORCED.y0.clone().requires_grad_(), times(0.0, 2.0), keep_mesh=True)
    solution = RungeKutta("dopri5").integrate(problem)
    states = solution.stats.states
    assert states.shape == (3, int(solution.stats.accepted[0]), 2) and not states.requires_grad
    assert torch.allclose(states, FORCED.exact(solution.stats.times, FORCED.y0), atol=1e-3)


def test_probes_follow_the_save_times_and_cost_nothing():
    problem = Problem(FORCED.field, FORCED.y0, times(0.0, 2.0))
    solver = RungeKutta("dopri5", 1e-7, 1e-7)
    plain, probed = solver.integrate(problem), solver.integrate(problem.with_probes(times(1.3, 0.2, 2.0)))
    assert torch.equal(probed.ts, times(0.0, 2.0, 1.3, 0.2, 2.0))
    assert torch.equal(probed.stats.nfe, plain.stats.nfe)
    assert float((probed.ys - FORCED.exact(probed.ts.expand(3, -1), FORCED.y0)).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="probes within the span"):
        solver.integrate(problem.with_probes(times(2.1)))


def test_complex_states_and_states_of_other_shapes():
    z = torch.complex(start(), start().flip(0))
    ts = times(0.0, 1.0, 2.0)
    solver = RungeKutta("tsit5", 1e-9, 1e-9)
    got = solve(lambda t, y: 1j * y, z, ts, solver=solver).ys
    assert apart(got, z.unsqueeze(1) * torch.exp(1j * ts).unsqueeze(-1)) < 1e-7
    flat = solve(lambda t, y: -y, torch.ones(3, dtype=torch.float64), ts, solver=solver).ys
    assert apart(flat, torch.exp(-ts).expand(3, -1)) < 1e-7
    image = solve(lambda t, y: -y, torch.ones(3, 2, 4, 4, dtype=torch.float64), ts.expand(3, -1), solver=solver).ys
    assert image.shape == (3, 3, 2, 4, 4) and apart(image[:, :, 0, 0, 0], torch.exp(-ts).expand(3, -1)) < 1e-7


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_function_transforms_of_an_eager_solve():
    field, y0 = Net(), start()

    def loss(y):
        return solve(field, y, times(0.0, 0.4, 1.0)).ys.square().sum()

    leaf = y0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(torch.func.grad(loss)(y0), expected)
    _, tangent = torch.func.jvp(loss, (y0,), (torch.ones_like(y0),))
    assert torch.allclose(tangent, expected.sum())


def test_a_blow_up_is_named_with_its_row_and_time():
    y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=torch.float64)
    with pytest.raises(SolveError, match=r"at time 0\.5.* in row 1.*dopri5"):
        solve(lambda t, y: y * y, y0, times(0.0, 1.0))


def test_a_non_finite_field_is_named():
    with pytest.raises(SolveError, match=r"non-finite at time 0 in row 2"):
        solve(lambda t, y: torch.where(y > 0.9, torch.nan, y), start(), times(0.0, 1.0))
    with pytest.raises(SolveError, match=r"underflowed at time 0\.5.*non-finite.*bound the field"):
        solve(lambda t, y: torch.where(t > 0.5, torch.nan, y), start(), times(0.0, 1.0))


def test_the_step_limit_is_named():
    with pytest.raises(SolveError, match=r"3 steps were not enough at time .*dopri5.*raise max_steps"):
        solve(FORCED.field, FORCED.y0, times(0.0, 50.0), solver=RungeKutta(max_steps=3))
    assert solve(ones, start(), times(0.0, 1.0), solver=Scripted(max_steps=1, first=1.0, taken=[])).ys.shape == (
        3,
        2,
        2,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rk4"}, "heun, bosh3, dopri5, tsit5"),
        ({"rtol": -1.0}, "rtol >= 0 and atol > 0"),
        ({"atol": 0.0}, "rtol >= 0 and atol > 0"),
        ({"rtol": math.nan}, "finite rtol >= 0 and atol > 0"),
        ({"atol": math.inf}, "finite rtol >= 0 and atol > 0"),
        ({"max_steps": 0}, "max_steps of at least 1"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RungeKutta(**settings)


def test_tolerance_below_rounding_is_refused():
    solver = RungeKutta(rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="solve in float64"):
        solve(ones, start(dtype=torch.float32), torch.tensor([0.0, 1.0]), solver=solver)
    assert solve(ones, start(), times(0.0, 1.0), solver=solver).stats.status.tolist() == [0, 0, 0]


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
@pytest.mark.parametrize("own", [False, True])
def test_a_solve_may_begin_where_a_path_has_long_begun(batching, own):
    """Pieces before the first time are empty; nothing is read from them."""
    knots = times(0.0, 0.2, 0.5, 1.0, 2.0)
    path = Hermite.through(knots, torch.stack([knots, knots.square()], dim=1).expand(2, -1, -1))
    ts = times(0.6, 0.6, 0.8, 1.5)
    solver = RungeKutta("dopri5", 1e-8, 1e-8, batching=batching)
    ys = solve(
        lambda t, y, path: path.derivative(t)[..., :1] - y,
        torch.zeros(2, 1, dtype=torch.float64),
        ts.expand(2, -1) if own else ts,
        solver=solver,
        context=path,
    ).ys
    assert (ys[:, :2] == 0).all() and apart(ys[..., 0], (1 - torch.exp(0.6 - ts)).expand(2, -1)) < 1e-6


def test_autocast_does_not_round_what_is_read():
    y0 = torch.full((3, 2), 1.2345)
    with torch.autocast("cpu", torch.bfloat16):
        ys = solve(lambda t, y: -y, y0, torch.linspace(0, 1, 4), solver=RungeKutta(compile="off")).ys
    assert ys.dtype == y0.dtype and torch.equal(ys[:, 0], y0)


@pytest.mark.parametrize("ts", [times(0.0, 1.0), times(0.0, 1.0).expand(3, -1)], ids=["shared", "rows"])
def test_probes_that_are_not_numbers_are_refused(ts):
    problem = Problem(FORCED.field, FORCED.y0, ts).with_probes(torch.full_like(ts[..., :1], torch.nan))
    with pytest.raises(ValueError, match="probes within the span"):
        RungeKutta().integrate(problem)
