"""Direct and Checkpointed: gradients right, the same to rounding, and counted."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from tests.problems import Conditions, Driven, Mixed, Net, apart, start

TS = torch.tensor([0.0, 0.3, 0.3, 1.5], dtype=torch.float64)
ROWS = torch.stack([TS, TS / 2, torch.zeros(4, dtype=torch.float64)])
SOLVERS = [
    RungeKutta("heun", 1e-3, 1e-3),
    RungeKutta("bosh3"),
    RungeKutta("dopri5", 1e-5, 1e-5),
    RungeKutta("tsit5", 1e-5, 1e-5),
    FixedRungeKutta("euler", 3),
    FixedRungeKutta("rk4", 2),
]


def values(solution) -> Tensor:
    """A loss that reads everything."""
    loss = solution.ys.sin().sum() + solution.integrals.square().sum()
    for estimate in solution.stats.estimates:
        if estimate is not None:
            loss = loss + estimate.square().sum()
    return loss


class Ramp(nn.Module):
    """A field with one parameter of few entries, so that finite differences are cheap."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, t, y, context):
        return torch.tanh(y @ self.weight) * torch.cos(t) + context * y


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5", 1e-9, 1e-9), FixedRungeKutta("rk4", 3)])
@pytest.mark.parametrize("ts", [TS, ROWS[:2]])
def test_gradients_are_those_of_finite_differences(solver, ts, adjoint):
    """States, times and context by gradcheck, the parameter by central differences."""
    field = Ramp(torch.tensor([[0.5, -1.0], [1.0, 0.3]], dtype=torch.float64))
    context = torch.tensor([[0.3], [-0.5]], dtype=torch.float64)

    def run(y, conditions):
        return solve(field, y, ts, solver=solver, adjoint=adjoint, context=conditions).ys

    assert torch.autograd.gradcheck(run, (start(2).requires_grad_(), context.requires_grad_()), atol=1e-5, rtol=1e-4)
    loss = run(start(2), context).sin().sum()
    (grad,) = torch.autograd.grad(loss, field.weight)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ends = []
        for step in (1e-5, -1e-5):
            other = field.weight.detach().clone()
            other[i, j] += step
            ends.append(solve(Ramp(other), start(2), ts, solver=solver, context=context).ys.sin().sum().item())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(grad[i, j].item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5", 1e-10, 1e-10), FixedRungeKutta("rk4", 60)])
def test_gradients_of_times_are_the_fields_rates(solver, adjoint):
    """d ys[j] / d ts[j] = f(ts[j], ys[j]), and nothing of a later time."""
    field = Net()
    ts = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64, requires_grad=True)
    ys = solve(field, start(), ts, solver=solver, adjoint=adjoint).ys
    for j in (1, 2):
        (grad,) = torch.autograd.grad(ys[:, j].sum(), ts, retain_graph=True)
        assert torch.allclose(grad[j], field(ts[j], ys[:, j]).sum(), rtol=1e-5)
        assert grad[3 - j].abs() < 1e-5


def both(run, inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Gradients of the same loss by Direct and by Checkpointed."""
    found = [torch.autograd.grad(values(run(adjoint)), inputs) for adjoint in (Direct(), Checkpointed())]
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("ts", [TS, ROWS, TS.flip(0)], ids=["shared", "rows", "backward"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.method)
def test_checkpointed_gradients_are_directs(solver, ts):
    """States, parameters, times, integrands, dense output, error and stiffness at once."""
    field, mixed = Net(), Mixed()
    y0, times = start().requires_grad_(), ts.clone().requires_grad_()
    own = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)

    def run(adjoint):
        return solve(field, y0, times, solver=solver, adjoint=adjoint, integrands=[(mixed, own)])

    for a, b in both(run, [y0, times, own, mixed.weight, *field.parameters()]):
        assert a.isfinite().all() and apart(b, a) < 1e-10


@pytest.mark.parametrize(
    ("read", "bound"),
    [
        (lambda s: s.ys[:, -1].sin().sum(), 1e-12),
        (lambda s: s.ys.sin().sum(), 1e-12),
        (lambda s: s.stats.error.square().sum(), 1e-10),
        (lambda s: s.stats.stiffness.sum(), 1e-6),
    ],
)
def test_each_part_is_exact_to_its_own_rounding(read, bound):
    field, y0 = Net(gain=2.0), start().requires_grad_()
    found = [
        torch.autograd.grad(read(solve(field, y0, TS, adjoint=adjoint)), [y0, *field.parameters()])
        for adjoint in (Direct(), Checkpointed())
    ]
    assert all(apart(b, a) < bound for a, b in zip(*found, strict=True))


def test_values_and_stats_are_directs():
    problem = Problem(Net(), start(), TS, keep_mesh=True)
    solver = RungeKutta("dopri5", 1e-6, 1e-6)
    direct, kept = (adjoint(solver, problem) for adjoint in (Direct(), Checkpointed()))
    assert torch.equal(direct.ys, kept.ys)
    for name in ("nfe", "accepted", "rejected", "status", "times", "steps", "error", "stiffness", "states"):
        assert torch.equal(getattr(direct.stats, name), getattr(kept.stats, name)), name
    assert not kept.stats.times.requires_grad and not kept.stats.steps.requires_grad


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("solver", [RungeKutta("dopri5"), FixedRungeKutta("rk4", 2)])
def test_context_leaves_and_path_coefficients_are_differentiated(solver, rows):
    knots = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    knots = torch.stack([knots, knots / 2, knots.clamp(max=0.2)]) if rows else knots
    xs = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    gain, field, y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True), Driven(), start().requires_grad_()

    def run(adjoint):
        context = Conditions(Hermite.through(knots, xs), gain)
        return solve(field, y0, knots, solver=solver, adjoint=adjoint, context=context)

    for a, b in both(run, [y0, xs, gain, field.weight]):
        assert a.abs().max() > 0 and apart(b, a) < 1e-11


class Noisy(SDE):
    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)
        self.weight = nn.Parameter(torch.tensor([[0.4, -0.8], [0.2, 0.9]], dtype=torch.float64))

    def drift(self, t, y):
        dy = torch.tanh(y @ self.weight)
        return dy, dy.square().sum(dim=1, keepdim=True)

    def diffusion(self, t, y):
        return torch.sigmoid(y @ self.weight)


def test_stochastic_steps_are_replayed_with_their_noise():
    field, y0 = Noisy(), start().requires_grad_()

    def run(adjoint):
        return solve(field, y0, TS, solver=Stochastic("euler", 4), adjoint=adjoint, noise=Brownian(7))

    for a, b in both(run, [y0, field.weight]):
        assert apart(b, a) < 1e-12


@pytest.mark.parametrize("solver", [RungeKutta("dopri5"), FixedRungeKutta("rk4", 2)])
def test_second_derivatives(solver):
    field, y0 = Net(width=4), start().requires_grad_()
    inputs, found = [y0, *field.parameters()], []
    for adjoint in (Direct(), Checkpointed()):
        loss = values(solve(field, y0, TS[[0, 1, 3]], solver=solver, adjoint=adjoint))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    assert all(apart(b, a) < 1e-10 for a, b in zip(*found, strict=True))


def test_evaluations_of_the_backward_pass_are_counted():
    field, y0 = Net(), start().requires_grad_()
    solution = solve(field, y0, TS, adjoint=Checkpointed())
    forward, accepted = field.calls, int(solution.stats.accepted[0])
    assert solution.stats.backward_nfe == [0] and forward == solution.stats.nfe[0]
    solution.ys.sum().backward()
    assert solution.stats.backward_nfe == [field.calls - forward] == [6 * accepted + 1]
    direct = solve(field, y0, TS)
    direct.ys.sum().backward()
    assert direct.stats.backward_nfe == [0]


def test_a_loss_on_little_costs_no_more_than_it_reads():
    """Only what the loss reads gets a cotangent; parameters that are not used get none."""
    field = Net()
    field.spare = nn.Parameter(torch.ones(1, dtype=torch.float64))
    field.net[0].bias.requires_grad_(False)
    solve(field, start(), TS, adjoint=Checkpointed()).ys[:, 1].sum().backward()
    assert field.spare.grad is None and field.net[0].bias.grad is None
    assert field.net[0].weight.grad.abs().max() > 0


def test_nothing_is_kept_without_gradients():
    with torch.no_grad():
        solution = solve(Net(), start(), TS, adjoint=Checkpointed())
    assert not solution.ys.requires_grad and not solution.stats.error.requires_grad


def test_parameters_changed_between_forward_and_backward_are_noticed():
    field = Net()
    loss = solve(field, start(), TS, adjoint=Checkpointed()).ys.sum()
    with torch.no_grad():
        field.net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_of_the_forward_pass_holds_in_the_backward_pass():
    field, found = Net(dtype=torch.float32), []
    for adjoint in (Direct(), Checkpointed()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = solve(field, start(dtype=torch.float32), TS, adjoint=adjoint, solver=FixedRungeKutta()).ys.sum()
        found.append(torch.autograd.grad(loss, list(field.parameters())))
    assert all(apart(b, a) < 1e-2 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_gradients_are_torchdiffeqs_to_tolerance(adjoint):
    field, y0, ts = Net(gain=2.0), start().requires_grad_(), torch.linspace(0, 2, 7, dtype=torch.float64)
    inputs = [y0, *field.parameters()]
    ys = solve(field, y0, ts, solver=RungeKutta("dopri5", 1e-8, 1e-8), adjoint=adjoint).ys
    theirs = odeint(field, y0, ts, rtol=1e-8, atol=1e-8, method="dopri5").transpose(0, 1)
    assert apart(ys.detach(), theirs.detach()) < 1e-6
    found = [torch.autograd.grad(x.sin().sum(), inputs) for x in (ys, theirs)]
    assert all(apart(a, b) < 1e-5 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
@pytest.mark.parametrize(
    "solver",
    [
        RungeKutta(compile="off"),
        RungeKutta(compile="on"),
        RungeKutta(batching="per_sample", compile="off"),
        FixedRungeKutta("rk4", 2, compile="off"),
    ],
    ids=["off", "on", "per sample", "fixed"],
)
def test_what_a_solve_has_used_is_free_without_the_garbage_collector(traced, uncollected, solver, adjoint):
    """Its start, here, and with it the graph that has made it."""
    field = Net()

    def used() -> weakref.ref[Tensor]:
        y0 = start().requires_grad_().sin()
        solution = solve(field, y0, TS, solver=solver, adjoint=adjoint)
        solution.ys.sum().backward()
        return weakref.ref(y0)

    used()
    assert used()() is None
