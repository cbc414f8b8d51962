"""The error penalty is the formula, its gradient ignores step sizes, and what cannot work is refused."""

import pytest
import torch
from torch import nn

from ndeflow.contracts import Output, Solved
from ndeflow.models import ODEForecaster
from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.regularizers import GlobalError, Stiffness
from tests.models.series import irregular_batch
from tests.numerics.sdes import Growth, Waves


def solved(adjoint=None, solver=RungeKutta()):  # noqa: B008
    torch.manual_seed(0)
    field = Net()
    y0 = torch.randn(6, 2, dtype=torch.float64)
    solution = solve(field, y0, torch.tensor([0.0, 2.0], dtype=torch.float64), solver=solver, adjoint=adjoint)
    return field, solution


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t, y):
        return 3 * self.net(y)


def penalty(solution, aggregate="sum"):
    regularizer = GlobalError(aggregate=aggregate)
    return regularizer.penalty(nn.Identity(), Output(solution.ys), None, [Solved(solution, range(0), range(0))])


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
def test_penalty_is_the_formula(aggregate):
    _, solution = solved()
    stats = solution.stats
    terms = stats.error.square().mean(0).sqrt() * stats.steps[0].abs()
    expected = {"sum": terms.sum, "mean": terms.mean, "max": terms.max}[aggregate]()
    torch.testing.assert_close(penalty(solution, aggregate), expected)


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_descending_the_penalty_makes_an_sde_cheaper(batching):
    """What the penalty is for: fewer steps of the same equation at the same tolerance."""
    torch.manual_seed(0)
    sde = Waves()
    solver = AdaptiveStochastic(rtol=1e-3, atol=1e-3, batching=batching)
    optimizer, counts = torch.optim.Adam(sde.parameters(), 0.05), []
    for n in range(12):
        y0, noise = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3), Brownian(n)
        solution = solve(sde, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), solver=solver, noise=noise)
        counts.append(solution.stats.nfe.double().mean().item())
        optimizer.zero_grad()
        penalty(solution).backward()
        optimizer.step()
    assert sum(counts[-3:]) < 0.6 * sum(counts[:3])


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
@pytest.mark.parametrize("method", ["heun", "milstein"])
def test_of_an_sde_with_a_linear_drift_the_stiffness_is_its_rate_by_the_stability_of_the_method(method, aggregate):
    solver = AdaptiveStochastic(method, rtol=1e-2, atol=1e-2)
    y0, ts = torch.ones(6, 1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = solve(Growth("ito"), y0, ts, solver=solver, noise=Brownian(0))
    count = len(solution.stats.steps[0]) if aggregate == "sum" else 1
    value = Stiffness(aggregate=aggregate).of(Solved(solution, range(0), range(0)))
    assert value.item() == pytest.approx(count * 0.3 / {"heun": 2.0, "milstein": 4.0}[method], rel=1e-6)


def test_descending_the_stiffness_of_an_sde_makes_its_drift_gentler():
    sde, values = Waves(), []
    optimizer = torch.optim.Adam(sde.parameters(), 0.05)
    y0, ts = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for n in range(10):
        solution = solve(sde, y0, ts, solver=AdaptiveStochastic(), adjoint=Checkpointed(), noise=Brownian(n))
        value = Stiffness(aggregate="mean").of(Solved(solution, range(0), range(0)))
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0] and sde.rate.abs() < 0.5


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
def test_rows_that_step_apart_are_penalised_by_their_own_steps(aggregate):
    _, solution = solved(solver=RungeKutta(batching="per_sample"))
    stats, rows = solution.stats, []
    for error, steps, count in zip(stats.error, stats.steps, stats.accepted.tolist(), strict=True):
        terms = error[:count] * steps[:count].abs()
        rows.append({"sum": terms.sum, "mean": terms.mean, "max": terms.max}[aggregate]())
    assert len(set(stats.accepted.tolist())) > 1
    torch.testing.assert_close(penalty(solution, aggregate), torch.stack(rows).mean())


def test_gradient_is_the_same_under_checkpointing_and_not_zero():
    grads = []
    for adjoint in (None, Checkpointed()):
        field, solution = solved(adjoint)
        penalty(solution).backward()
        grads.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    assert grads[0].norm() > 1e-6
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


def test_one_descent_step_on_a_frozen_mesh_lowers_the_error():
    field, solution = solved()
    before = penalty(solution)
    before.backward()
    with torch.no_grad():
        norm = nn.utils.get_total_norm([p.grad for p in field.parameters()])
        for p in field.parameters():
            p -= 0.01 * p.grad / norm
    mesh = solution.stats.times[0].tolist(), solution.stats.steps[0].tolist()
    y, total, solver = solution.problem.y0, 0.0, RungeKutta()
    with torch.no_grad():
        for t, h in zip(*mesh, strict=True):
            step = solver.step(solution.problem, torch.tensor(t).double(), y, torch.tensor(h).double())
            total += step.ratio.square().mean().sqrt().item() * h
            y = step.y
    assert total < before.item() - 0.005 * norm.item()


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
@pytest.mark.parametrize("batching", ["shared", "per_sample"])
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_a_solve_without_a_step_has_no_error_and_no_gradient(adjoint, batching, aggregate):
    solver = RungeKutta(batching=batching, compile="off")
    for ts in (torch.full((3,), 0.5).double(), torch.full((6, 3), 0.5).double()):
        field, y0 = Net(), torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
        solution = solve(field, y0, ts, solver=solver, adjoint=adjoint)
        assert solution.stats.error.shape == solution.stats.stiffness.shape == (6, 0)
        assert solution.stats.attempts.error.shape == (6, 0)
        value = penalty(solution, aggregate)
        assert value.item() == 0
        (value + solution.ys.sum()).backward()
        assert (y0.grad == 3).all() and not any(p.grad is not None and p.grad.any() for p in field.parameters())


def test_a_batch_of_which_no_row_can_start_has_no_error():
    def field(t, y):
        return y * torch.nan

    solver = RungeKutta("bosh3", batching="per_sample", on_failure="mask", compile="off")
    solution = solve(field, torch.ones(2, 1), torch.tensor([0.0, 1.0]), solver=solver)
    assert solution.stats.error.shape == (2, 0) and solution.stats.stiffness is None
    assert penalty(solution, "max").item() == 0


def test_adjoints_and_solvers_without_error_gradients_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="use adjoint=direct or adjoint=checkpointed"):
        GlobalError().check(ODEForecaster(2, adjoint=Backsolve()))
    with pytest.raises(ValueError, match="use an adaptive"):
        GlobalError().check(ODEForecaster(2, solver=FixedRungeKutta()))
    for solver in (FixedRungeKutta(), RungeKutta("bosh3"), Stochastic()):
        with pytest.raises(ValueError, match="use solver=dopri5 or tsit5, .* or of an SDE adaptive_stochastic"):
            Stiffness().check(ODEForecaster(2, solver=solver))
    Stiffness().check(ODEForecaster(2, solver=AdaptiveStochastic()))


def test_a_model_forward_pass_is_penalised():
    model = ODEForecaster(2, hidden=4, width=8)
    regularizer = GlobalError()
    batch = irregular_batch()
    with model.prepared({"error": regularizer}) as preparation:
        output = model(batch)
    value = regularizer.penalty(model, output, batch, preparation.solved["error"])
    value.backward()
    assert value > 0 and all(p.grad is not None for p in model.velocity.parameters())


def test_unknown_aggregates_are_refused():
    with pytest.raises(ValueError, match="expected aggregate"):
        GlobalError(aggregate="median")
