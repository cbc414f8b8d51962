"""The reason given for an expensive solve is the true one, on problems made to be of each kind."""

import math

import pytest
import torch

from ndeflow import AdaptiveStochastic, Brownian, Diagnosis, FixedRungeKutta, RungeKutta, diagnose, solve
from ndeflow.numerics.course import Course
from ndeflow.numerics.paths import Linear
from tests.numerics.sdes import Growth

METHODS = pytest.mark.parametrize("method", ["dopri5", "tsit5"])
ONE = torch.ones(1, 1, dtype=torch.float64)


def solved(field, y0=ONE, end=10.0, *, method="dopri5", tol=1e-5, start=0.0, **options):
    ts = start + torch.linspace(0, end, 5, dtype=torch.float64)
    with torch.no_grad():
        return solve(field, y0, ts, solver=RungeKutta(method, rtol=tol, atol=tol), **options)


def van_der_pol(mu):
    def field(t, y):
        x, v = y.unbind(-1)
        return torch.stack([v, mu * (1 - x**2) * v - x], dim=-1)

    return field


def slow_manifold(rate):
    """Prothero, Robinson 1974: the solution tends to sin(t), at `rate`."""
    return lambda t, y: -rate * (y - torch.sin(t)) + torch.cos(t)


def rotation(t, y):
    return 4 * torch.stack([y[..., 1], -y[..., 0]], dim=-1)


def attempts(solution):
    return int(solution.stats.attempts.accepted.shape[1])


@METHODS
@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_stiff(method, tol):
    two = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    for field, y0, end in ((van_der_pol(60.0), two, 1.0), (slow_manifold(500.0), ONE, 1.0)):
        found = diagnose(solved(field, y0, end, method=method, tol=tol))
        assert found.kind == "stiff" and found.evidence["share"] > 0.8
        assert found.evidence["product"] == pytest.approx(found.evidence["limit"], rel=0.1)


def test_a_stiff_solve_is_as_dear_at_a_looser_tolerance_and_its_mean_error_is_near_the_aim():
    """A step size that stays where it is has factors of mean 1: the geometric mean of the errors is safety^order."""
    tight, loose = (solved(slow_manifold(500.0), tol=tol, end=1.0) for tol in (1e-4, 1e-2))
    assert attempts(loose) == pytest.approx(attempts(tight), rel=0.1)
    mean = tight.stats.attempts.error[0, 20:-20].log().mean().exp()
    assert float(mean) == pytest.approx(0.9**5, rel=0.1)


@METHODS
@pytest.mark.parametrize("tol", [1e-4, 1e-7])
def test_accuracy(method, tol):
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    solution, looser = (solved(rotation, two, method=method, tol=t) for t in (tol, 10 * tol))
    found = diagnose(solution)
    assert found.kind == "accuracy" and f"{attempts(solution)} attempts" in str(found)
    assert 1 - attempts(looser) / attempts(solution) == pytest.approx(found.evidence["saved"], abs=0.08)


def test_many_jumps_and_a_method_of_low_order():
    found = diagnose(solved(lambda t, y: -0.3 * y + torch.sign(torch.sin(6 * t)), end=4.0, method="bosh3"))
    assert found.kind == "discontinuous"


@METHODS
@pytest.mark.parametrize("jump", [2.3, 7.1])
def test_a_jump_in_time_is_found_where_it_is(method, jump):
    found = diagnose(solved(lambda t, y: -0.3 * y + 2.0 * (t > jump), end=jump + 1, method=method, tol=1e-6))
    assert found.kind == "discontinuous" and f"t = {found.evidence['time']:.4g}" in found.sentence
    assert found.evidence["time"] == pytest.approx(jump, abs=0.01)
    assert found.evidence["after"] < 0.02 * found.evidence["before"]


def test_over_a_jump_the_local_error_is_of_order_one():
    orders = Course.of(solved(lambda t, y: 1.0 * (t > math.pi) + 0 * y, tol=1e-6)).order()
    assert len(orders) > 10 and sorted(orders)[len(orders) // 2] == pytest.approx(1.0, abs=0.05)


def test_a_jump_in_state_and_back_in_time():
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for end in (20.0, -20.0):
        field = lambda t, y: torch.stack([y[..., 1], -torch.sign(y[..., 0])], dim=-1)  # noqa: E731
        found = diagnose(solved(field, start, end, tol=1e-6))
        assert found.kind == "discontinuous"
        quarter = math.sqrt(2)  # from the top of a parabola of height 1 to its zero
        assert found.evidence["time"] / quarter % 2 == pytest.approx(1.0, abs=0.1)


def test_a_tolerance_below_rounding_buys_no_accuracy():
    y0, ts = torch.tensor([[100.0, 0.0]]), torch.linspace(0, 5, 5)
    exact = 100 * torch.stack([torch.cos(4 * ts), -torch.sin(4 * ts)], dim=-1)

    def error(atol, dtype):
        solution = solve(rotation, y0.to(dtype), ts, solver=RungeKutta(rtol=0.0, atol=atol))
        return diagnose(solution).kind, float((solution.ys[0] - exact).abs().max())

    (kind, worse), (_, better) = error(1.5e-6, torch.float32), error(1.5e-6, torch.float64)
    assert kind == "rounding" and worse > 2 * better
    (kind, worse), (_, better) = error(3e-4, torch.float32), error(3e-4, torch.float64)
    assert kind == "accuracy" and worse < 1.2 * better


def test_float32_times_far_from_zero():
    field = lambda t, y: -y + torch.sin(3 * t)  # noqa: E731
    far, near = (solved(field, ONE.float(), start=start) for start in (1e5, 0.0))
    assert diagnose(far).kind == "rounding" and "times" in str(diagnose(far))
    assert diagnose(near).kind == "accuracy" and attempts(far) > 5 * attempts(near)


def test_knots():
    knots = torch.linspace(0, 10, 41, dtype=torch.float64)
    path = Linear.through(knots[None], torch.sin(knots)[None, :, None])
    found = diagnose(solved(lambda t, y, x: -y, tol=1e-3, context=path))
    assert found.kind == "knots" and found.evidence["pieces"] == 40


def test_cheap_and_unknown():
    solution = solved(lambda t, y: -y, end=1.0)
    assert diagnose(solution) == Diagnosis("cheap", f"cheap: {attempts(solution)} attempted steps",
                                           {"attempts": attempts(solution)})  # fmt: skip
    fixed = solve(lambda t, y: -y, ONE, torch.tensor([0.0, 1.0]), solver=FixedRungeKutta())
    assert diagnose(fixed).kind == "fixed" and "FixedRungeKutta" in str(diagnose(fixed))
    still = solve(lambda t, y: -y, ONE, torch.tensor([1.0, 1.0]))
    assert diagnose(still).kind == "cheap" and attempts(still) == 0


def test_a_method_without_an_estimate_of_stiffness_says_so():
    assert "dopri5 to tell" in diagnose(solved(slow_manifold(100.0), method="bosh3", end=1.0)).sentence


def test_the_stiffest_row_of_a_batch_decides():
    rate = torch.tensor([[0.1], [300.0], [1.0]], dtype=torch.float64)
    found = diagnose(solved(slow_manifold(rate), ONE.expand(3, 1), end=1.0))
    assert found.kind == "stiff"


def test_rows_with_a_pace_of_their_own_are_judged_by_the_dearest():
    jump, ts = torch.tensor([[99.0], [2.3]], dtype=torch.float64), torch.linspace(0, 4, 5, dtype=torch.float64)
    solver = RungeKutta(rtol=1e-6, atol=1e-6, batching="per_sample")
    solution = solve(lambda t, y, c: -0.3 * y + 2.0 * (t > c), ONE.expand(2, 1), ts, solver=solver, context=jump)
    found = diagnose(solution)
    assert found.kind == "discontinuous" and found.evidence["time"] == pytest.approx(2.3, abs=0.01)
    assert len(Course.of(solution).times) == int(solution.stats.accepted[1] + solution.stats.rejected[1])


def test_attempts_are_all_that_was_tried_in_order():
    stats = solved(lambda t, y: 1.0 * (t > 2.5) + 0 * y, ONE.expand(2, 1), tol=1e-4).stats
    times, steps, error, accepted = stats.attempts
    assert accepted.sum(dim=1).tolist() == stats.accepted.tolist()
    assert (~accepted).sum(dim=1).tolist() == stats.rejected.tolist() and stats.rejected[0] > 2
    assert torch.equal(times[accepted].view(2, -1), stats.times) and torch.equal(
        steps[accepted].view(2, -1), stats.steps
    )
    assert torch.equal(error[accepted].view(2, -1), stats.error)
    torch.testing.assert_close(times.diff(dim=1), torch.where(accepted, steps, 0.0)[:, :-1])
    rms = error.square().mean(dim=0).sqrt()
    assert ((rms <= 1) == accepted[0]).all()


@pytest.mark.parametrize(("tol", "count", "kind"), [(1e-1, 2, "cheap"), (1e-3, 2, "accuracy"), (1e-1, 60, "saves")])
def test_an_sde_is_diagnosed_by_what_decides_its_steps(tol, count, kind):
    ts, noise = torch.linspace(0, 1, count, dtype=torch.float64), Brownian(1)
    solution = solve(Growth("ito"), ONE, ts, solver=AdaptiveStochastic(rtol=tol, atol=tol), noise=noise)
    found = diagnose(solution)
    assert found.kind == kind
    if kind == "accuracy":
        looser = solve(Growth("ito"), ONE, ts, solver=AdaptiveStochastic(rtol=10 * tol, atol=10 * tol), noise=noise)
        assert abs(1 - attempts(looser) / attempts(solution) - found.evidence["saved"]) < 0.15
