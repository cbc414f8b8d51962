"""One more step: its mean is the sum over all steps, its gradient that of the error, with any adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.contracts import Output, Solved
from ndeflow.models import ODEForecaster
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import Solution
from ndeflow.numerics.solve import solve
from ndeflow.regularizers import GlobalError, LocalError, LocalStiffness, Stiffness
from tests.regularizers.fields import Net, prepared

F64 = torch.float64
TS = torch.tensor([0.0, 0.4, 2.0], dtype=F64)
SOLVER = RungeKutta(rtol=1e-5, atol=1e-5, compile="off")
ADJOINTS = [Direct(), Checkpointed(), Backsolve(), Reversible()]


def start(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(1))


def place(solution: Solution, time: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A time, the state that a step from the last accepted one before it comes to, and that one's size."""
    t, times, states = torch.tensor(time, dtype=F64), solution.stats.times[0], solution.stats.states
    j = int((times <= t).sum()) - 1
    assert states is not None
    y = SOLVER.step(solution.problem, times[j], states[:, j], t - times[j]).y.detach()
    return t, y, solution.stats.steps[0][j]


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_the_solve_is_as_without_the_penalty(batching, sampling):
    solver, field = RungeKutta(batching=batching, compile="off"), Net()
    _, solution = prepared(LocalError(sampling=sampling), field, start(), TS, solver=solver)
    plain = solve(field, start(), TS, solver=solver)
    assert torch.equal(solution.ys, plain.ys) and torch.equal(solution.stats.steps, plain.stats.steps)


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_the_mean_of_the_unbiased_penalty_over_times_is_nearly_the_global_error(batching, drawn):
    """But for what the error changes within a step, and a last step that would pass the end."""
    field, solver = Net(), RungeKutta(rtol=1e-8, atol=1e-8, batching=batching, compile="off")
    rows, times = start(4 if batching == "shared" else 1), 64
    whole, local = prepared(GlobalError(), field, rows, TS, solver=solver)[0], 0.0
    for k in range(times):
        drawn((k + 0.5) / times)
        local += prepared(LocalError(), field, rows, TS, solver=solver)[0].item() / times
    assert abs(local - whole.item()) < 0.1 * whole.item()


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_the_mean_of_the_biased_penalty_over_the_steps_is_the_global_error(batching, drawn):
    """Values and gradients, of which only those by way of the states are left out."""
    field, solver = Net(), RungeKutta(rtol=1e-5, atol=1e-5, batching=batching, compile="off")
    weights = list(field.parameters())
    rows = start(4 if batching == "shared" else 1)
    whole, solution = prepared(GlobalError(), field, rows, TS, solver=solver)
    count, values = int(solution.stats.accepted[0]), []
    for j in range(count):
        drawn((j + 0.5) / count)
        values.append(prepared(LocalError(sampling="biased"), field, rows, TS, solver=solver)[0])
    local = torch.stack(values).mean()
    assert count > 3 and torch.allclose(local, whole, rtol=1e-9)
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(x, weights)]) for x in (local, whole))
    assert torch.cosine_similarity(a, b, dim=0) > 0.5


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_the_unbiased_penalty_is_a_step_from_a_random_time(adjoint, drawn):
    field, y0 = Net(), start()
    drawn(0.37)
    value, solution = prepared(LocalError(), field, y0, TS, solver=SOLVER, adjoint=adjoint)
    t, y, h = place(solution, 0.37 * 2.0)
    exact = solve(field, y0, torch.stack([TS[0], t]), solver=RungeKutta(rtol=1e-9, atol=1e-9, compile="off")).ys[:, -1]
    assert torch.allclose(y, exact, atol=1e-3)
    step = SOLVER.step(solution.problem, t, y, h)
    want = 2.0 * step.ratio.square().mean().sqrt()
    assert torch.allclose(value, want, rtol=1e-6)
    got, own = (torch.autograd.grad(x, field.net[0].weight)[0] for x in (value, want))
    assert torch.allclose(got, own, rtol=1e-6, atol=1e-12)


def test_a_step_that_would_pass_the_end_is_the_accepted_one(drawn):
    field, y0 = Net(), start()
    drawn(1 - 1e-9)
    value, solution = prepared(LocalError(), field, y0, TS, solver=SOLVER)
    times, steps = solution.stats.times[0], solution.stats.steps[0]
    step = SOLVER.step(solution.problem, times[-1], solution.stats.states[:, -1], steps[-1])
    assert torch.allclose(value, 2.0 * step.ratio.square().mean().sqrt(), rtol=1e-9)


def test_a_step_that_would_pass_a_knot_is_the_accepted_one(drawn):
    """A field of a path that jumps in slope: a step over the knot would have an error of another kind."""

    class Rates(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2).double()

        def forward(self, t, z):
            return torch.tanh(self.linear(z)).unsqueeze(-1)

    ts = torch.linspace(0, 2, 5, dtype=F64)
    x = torch.tensor([0.0, 3.0, -3.0, 3.0, 0.0], dtype=F64).view(1, 5, 1).expand(4, 5, 1)
    torch.manual_seed(0)
    field, path = Controlled(Rates()), Hermite.through(ts, x)
    for u in (0.24, 0.249999, 0.26, 0.6, 0.9):
        drawn(u)
        value, solution = prepared(LocalError(), field, start(), ts, solver=SOLVER, context=path)
        ratio = solution.stats.error.detach().square().mean(dim=0).sqrt()
        assert value.item() < 2.0 * 5 * ratio.max().item()


def test_gradients_are_those_of_small_differences(drawn):
    """Of the step alone: t*, y* and h are constants, the first stage is not; so is the scale of the error."""
    field, y0 = Net(), start()
    drawn(0.37)
    value, solution = prepared(LocalError(), field, y0, TS, solver=SOLVER)
    t, y, h = place(solution, 0.37 * 2.0)
    scale = (y.abs().maximum(SOLVER.step(solution.problem, t, y, h).y.detach().abs()) + 1) * 1e-5

    def error():
        return 2.0 * (SOLVER.step(solution.problem, t, y, h).error / scale).square().mean().sqrt()

    gradient = torch.autograd.grad(value, field.net[0].weight)[0]
    direction = torch.randn(gradient.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        field.net[0].weight += 1e-5 * direction
        up = error()
        field.net[0].weight -= 2e-5 * direction
        down = error()
    assert abs((gradient * direction).sum() - (up - down) / 2e-5) < 1e-5 * abs((up - down) / 2e-5) + 1e-9


def test_a_constant_field_has_no_error():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, t, y):
            return self.rate.expand_as(y)

    for sampling in ("unbiased", "biased"):
        value, _ = prepared(LocalError(sampling=sampling), Constant(), start(), TS, solver=SOLVER)
        assert value.item() < 1e-9
        value.backward()


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_local_stiffness_is_that_of_a_linear_field(sampling):
    """Of dy/dt = -3 y every difference quotient of the field is 3."""

    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(3.0, dtype=F64))

        def forward(self, t, y):
            return -self.rate * y

    value, solution = prepared(LocalStiffness(sampling=sampling), Decay(), start(), TS, solver=SOLVER)
    assert abs(value.item() - 3.0 / SOLVER.stability) < 1e-3
    (one,) = [Solved(solution, range(0), range(0))]
    whole = Stiffness().penalty(nn.Identity(), Output(solution.ys), None, [one])
    assert abs(whole.item() - 3.0 / SOLVER.stability) < 1e-3


def test_what_estimates_nothing_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="use an adaptive one"):
        LocalError().check(ODEForecaster(2, solver=FixedRungeKutta()))
    with pytest.raises(ValueError, match="use solver=dopri5 or tsit5"):
        LocalStiffness().check(ODEForecaster(2, solver=RungeKutta("bosh3")))
    with pytest.raises(ValueError, match="use solver=dopri5 or tsit5"):
        Stiffness().check(ODEForecaster(2, solver=RungeKutta("bosh3")))
    with pytest.raises(ValueError, match="expected sampling unbiased or biased"):
        LocalError(sampling="all")
    LocalError().check(ODEForecaster(2, adjoint=Backsolve()))
