"""Steps of each row's own: the same as solving the rows one by one, for the cost of that, and masked failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.controllers import PI, I
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.paths import ControlPath, Hermite
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import NON_FINITE, TOO_MANY, UNDERFLOW, Solution, SolveError, Stats
from ndeflow.numerics.solve import solve
from tests.problems import FORCED, PROBLEMS, Conditions, Driven, Mixed, Net, apart, start

TS = torch.tensor([0.0, 0.3, 0.3, 1.5], dtype=torch.float64)
ENDS = torch.stack([TS, TS / 2, TS + 0.2, torch.zeros(4, dtype=torch.float64)])
ADJOINTS = [Direct(), Checkpointed()]


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def own(method: str = "dopri5", tolerance: float = 1e-5, **settings) -> RungeKutta:
    return RungeKutta(method, tolerance, tolerance, batching="per_sample", **settings)


def one(x: Tensor, row: int) -> Tensor:
    return x if x.dim() == 1 else x[row : row + 1]


class Counting(Net):
    """Counts the rows it is given, and computes each alone, so that no rounding depends on the others."""

    rows = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.rows += len(y)
        ts = t.expand(len(y), 1)
        rates = [super(Counting, self).forward(ts[b : b + 1], y[b : b + 1]) for b in range(len(y))]
        return torch.cat(rates) * (1.0 + y[:, :1].abs())


def read(solution: Solution) -> Tensor:
    """A loss that reads everything but the number of steps."""
    loss = solution.ys.abs().sin().sum() + solution.integrals.square().sum()
    return loss + sum(x.square().sum() for x in (solution.stats.error, solution.stats.stiffness) if x is not None)


@pytest.mark.parametrize("ts", [TS, ENDS, TS.flip(0)], ids=["shared", "rows", "backward"])
@pytest.mark.parametrize("solver", [own("heun", 1e-3), own("bosh3"), own("tsit5"), own(controller=PI())])
@torch.no_grad()
def test_rows_step_as_they_do_alone(solver, ts):
    field, y0 = Counting(gain=2.0), 2 * start(4)
    together = solve(field, y0, ts, solver=solver)
    assert field.rows == together.stats.nfe.sum()
    for row in range(4):
        alone, stats = solve(field, y0[row : row + 1], one(ts, row), solver=solver), together.stats
        count = int(alone.stats.accepted)
        assert torch.allclose(together.ys[row], alone.ys[0], rtol=1e-12, atol=1e-12)
        costs = [(x.accepted[b], x.rejected[b], x.nfe[b]) for x, b in ((stats, row), (alone.stats, 0))]
        assert costs[0] == costs[1]
        assert torch.allclose(stats.times[row, :count], alone.stats.times[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(stats.steps[row, :count], alone.stats.steps[0], rtol=1e-12)
        assert (stats.steps[row, count:] == 0).all() and torch.allclose(
            stats.times[row, count:], one(ts, row)[..., -1:], atol=1e-12
        )
        assert count == 0 or torch.allclose(stats.error[row, :count], alone.stats.error[0], rtol=1e-9)
    assert len(set(together.stats.accepted.tolist())) > 1


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("ts", [TS, ENDS], ids=["shared", "rows"])
def test_gradients_are_those_of_rows_alone(ts, adjoint):
    """States, times, parameters, integrands and their own context, and second derivatives of all."""
    field, mixed = Net(width=4, gain=2.0), Mixed()
    y0, ts = (2 * start(4)).requires_grad_(), ts.clone().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64, requires_grad=True)
    inputs = [y0, ts, weights, mixed.weight, *field.parameters()]

    def run(rows: slice, of: Tensor, how: Direct | Checkpointed) -> Tensor:
        pairs = [(mixed, weights[rows])]
        found = solve(field, y0[rows], of, solver=own(), adjoint=how, integrands=pairs)
        return found.ys.sin().sum() + found.integrals.square().sum()

    losses = [
        run(slice(None), ts, adjoint),
        torch.stack([run(slice(b, b + 1), one(ts, b), Direct()) for b in range(4)]).sum(),
    ]
    first = [torch.autograd.grad(loss, inputs, create_graph=True) for loss in losses]
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in first]
    for a, b in (*zip(*first, strict=True), *zip(*second, strict=True)):
        assert b.abs().max() > 0 and apart(a.detach(), b.detach()) < 1e-9


@pytest.mark.parametrize("ts", [TS, ENDS, TS.flip(0)], ids=["shared", "rows", "backward"])
@pytest.mark.parametrize("method", ["heun", "dopri5"])
def test_checkpointed_gradients_are_directs(method, ts):
    field, mixed, y0 = Net(gain=2.0), Mixed(), (2 * start(4)).requires_grad_()
    ts, weights = ts.clone().requires_grad_(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    inputs, found = [y0, ts, weights, mixed.weight, *field.parameters()], []
    for adjoint in ADJOINTS:
        solution = solve(
            field, y0, ts, solver=own(method, 1e-4), adjoint=adjoint, integrands=[(mixed, weights)]
        )  # fmt: skip
        found.append(torch.autograd.grad(read(solution), inputs))
    for a, b in zip(*found, strict=True):
        assert a.isfinite().all() and apart(b, a) < 1e-10


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("flip", [False, True])
def test_control_paths_with_knots_of_each_rows_own_and_padding(adjoint, flip):
    """Padding at either end: a row's first step may come segments after the others'."""
    knots = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    knots = torch.stack([knots, knots / 2, knots.clamp(max=0.2), knots.clamp(min=0.9)])
    ts = knots.flip(1) if flip else knots
    draw = torch.Generator().manual_seed(2)
    xs = torch.randn(4, 4, 2, dtype=torch.float64, generator=draw).mul(4).requires_grad_()
    gain, field, y0 = torch.ones(4, 2, dtype=torch.float64, requires_grad=True), Driven(), start(4).requires_grad_()
    inputs = [y0, xs, gain, field.weight]

    def run(rows: slice, how: Direct | Checkpointed) -> Tensor:
        context = Conditions(Hermite.through(knots[rows], xs[rows]), gain[rows])
        return solve(field, y0[rows], ts[rows], solver=own(), adjoint=how, context=context).ys

    together = run(slice(None), adjoint)
    alone = torch.cat([run(slice(b, b + 1), Direct()) for b in range(4)])
    assert apart(together.detach(), alone.detach()) < 1e-12
    for a, b in zip(*(torch.autograd.grad(ys.sin().sum(), inputs) for ys in (together, alone)), strict=True):
        assert b.abs().max() > 0 and apart(a, b) < 1e-9


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_batchings_reach_the_tolerance_and_agree(name):
    case, ts = PROBLEMS[name], torch.linspace(0, 4, 23, dtype=torch.float64)
    shared, rows = (solve(case.field, case.y0, ts, solver=RungeKutta("tsit5", 1e-7, 1e-7, batching=b)).ys
                    for b in ("shared", "per_sample"))  # fmt: skip
    assert float((rows - case.exact(ts.expand(3, -1), case.y0)).abs().max()) < 6e-6
    assert float((rows - shared).abs().max()) < 6e-6


def test_a_stiff_row_costs_its_own_evaluations_only():
    """One row of 32 at 500 times the rate: at most 1.3 times the evaluations of 32 solves."""
    rates = torch.ones(32, 1, dtype=torch.float64)
    rates[7] = 500.0
    y0 = torch.cat([start(32, 1) + 2, rates], dim=1)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[:, 1:] * (torch.cos(t) - y[:, :1]), torch.zeros_like(y[:, 1:])], dim=1)

    together = int(solve(field, y0, times(0.0, 2.0), solver=own()).stats.nfe.sum())
    alone = sum(int(solve(field, y[None], times(0.0, 2.0), solver=own()).stats.nfe) for y in y0)
    shared = int(solve(field, y0, times(0.0, 2.0), solver=RungeKutta("dopri5", 1e-5, 1e-5)).stats.nfe.sum())
    assert together <= 1.3 * alone and together < shared / 5


def test_complex_states_probes_and_states_of_other_shapes():
    z, ts = torch.complex(start(), start().flip(0)) * times(1.0, 4.0, 0.1)[:, None], times(0.0, 1.0, 2.0)
    problem = Problem(lambda t, y: 1j * y, z, ts).with_probes(times(0.7))
    got = own("tsit5", 1e-9).integrate(problem)
    assert apart(got.ys, z.unsqueeze(1) * torch.exp(1j * got.ts).unsqueeze(-1)) < 1e-7
    flat = solve(lambda t, y: -y, times(1.0, 5.0, 0.1), ts, solver=own()).ys
    assert apart(flat, times(1.0, 5.0, 0.1)[:, None] * torch.exp(-ts)) < 1e-4
    image = solve(lambda t, y: -y, torch.ones(3, 2, 4, dtype=torch.float64), ts.expand(3, -1), solver=own()).ys
    assert apart(image[:, :, 0, 0], torch.exp(-ts).expand(3, -1)) < 1e-4


def test_mesh_states_and_attempts_are_kept_row_by_row():
    y0 = FORCED.y0 * times(1.0, 100.0, 0.01)[:, None]
    problem = Problem(FORCED.field, y0, ENDS[:3] * 6, keep_mesh=True)
    stats = RungeKutta("bosh3", 1e-9, 1e-6, batching="per_sample", controller=I(safety=1.0)).integrate(problem).stats
    taken = stats.steps != 0
    exact = y0[:, None] * torch.exp(torch.sin(stats.times) - torch.sin(problem.ts[:, :1])).unsqueeze(-1)
    assert torch.allclose(stats.states[taken], exact[taken], atol=1e-3)
    tries = stats.attempts
    assert (tries.accepted.sum(dim=1) == stats.accepted).all() and stats.rejected.sum() > 0
    assert ((tries.steps != 0).sum(dim=1) == stats.accepted + stats.rejected).all()
    assert torch.equal(tries.times[tries.accepted], stats.times[taken])
    assert (tries.error[tries.accepted] <= 1).all() and (tries.error[~tries.accepted & (tries.steps != 0)] > 1).all()


def test_rows_that_never_move_give_their_start_and_its_gradient():
    y0, ts = start().requires_grad_(), torch.full((3, 2), 0.3, dtype=torch.float64)
    for adjoint in ADJOINTS:
        solution = solve(Net(), y0, ts, solver=own(), adjoint=adjoint)
        assert torch.equal(solution.ys, y0[:, None].expand(-1, 2, -1)) and solution.stats.accepted.sum() == 0
        assert solution.stats.steps.shape == solution.stats.attempts.steps.shape == (3, 0)
        (grad,) = torch.autograd.grad(solution.ys.sum(), y0)
        assert (grad == 2).all()


class Walled(nn.Module):
    """dy/dt = bias - rate(t) y, not finite beyond a wall that only a rejected step of a fast row reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(times(0.3))

    def forward(self, t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        return torch.where(y < 0, torch.nan, -rates * y * torch.sigmoid(50 * (t - 0.5))) + self.bias


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_rejected_row_that_is_not_finite_spoils_no_gradient(adjoint):
    rates, y0, solver = times(1.0, 40.0)[:, None], times(1.0, 1.0)[:, None], own(controller=I(largest=50.0))
    field, ts = Walled(), times(0.0, 1.0)
    together = solve(field, y0, ts, solver=solver, adjoint=adjoint, context=rates)
    assert together.stats.attempts.error.isfinite().logical_not().any()
    alone = [solve(field, y0[b : b + 1], ts, solver=solver, context=rates[b : b + 1]).ys for b in range(2)]
    assert torch.allclose(together.ys, torch.cat(alone), rtol=1e-12)
    grads = [torch.autograd.grad(ys.sum(), field.bias)[0] for ys in (together.ys, torch.cat(alone))]
    assert grads[0].isfinite() and torch.allclose(grads[0], grads[1], rtol=1e-9)


def test_a_row_that_fails_is_named_with_its_status():
    y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=torch.float64)
    with pytest.raises(SolveError, match=r"at time 0\.5.* in row 1.*dopri5, \d+ steps accepted, \d+ rej") as raised:
        solve(lambda t, y: y * y, y0, times(0.0, 1.0), solver=own())
    assert raised.value.status[1] in (UNDERFLOW, NON_FINITE) and raised.value.status[[0, 2]].sum() == 0
    with pytest.raises(SolveError, match=r"5 steps were not enough .* in row 0: .*5 steps accepted, 0 rej") as raised:
        solve(lambda t, y: y, y0, times(0.0, 1.0), solver=own("heun", 1e-3, max_steps=5))
    assert raised.value.status.tolist() == [TOO_MANY] * 3
    with pytest.raises(SolveError, match="non-finite at time 0 in row 2") as raised:
        solve(lambda t, y: torch.where(y > 1.9, torch.nan, y), y0[[0, 2, 1]], times(0.0, 1.0), solver=own())
    assert raised.value.status.tolist() == [0, 0, NON_FINITE]


REFUSED = [
    ({"batching": "rows"}, "expected batching shared or per_sample, got 'rows'"),
    ({"on_failure": "skip"}, "expected on_failure raise or mask, got 'skip'"),
    ({"on_failure": "mask"}, "expected batching=per_sample for on_failure=mask, got shared.*; set batching"),
    ({"on_failure": "mask", "batching": "shared", "compile": "on"}, "set batching=per_sample, or on_failure=raise"),
]


@pytest.mark.parametrize("adjoint", [Backsolve(), Reversible()])
def test_masking_is_refused_by_adjoints_of_common_steps(adjoint):
    with pytest.raises(ValueError, match=r"per.sample.*use (batching=)?shared, or .*Checkpointed"):
        solve(Net(), start(), TS, solver=own(on_failure="mask"), adjoint=adjoint)


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RungeKutta(**settings)


def test_backsolve_refuses_rows_that_step_apart():
    for adjoint, solver in ((Backsolve(), own()), (Backsolve(solver=own()), RungeKutta())):
        with pytest.raises(ValueError, match="expected rows that step together for Backsolve"):
            solve(Net(), start(), TS, adjoint=adjoint, solver=solver)


class Exploding(nn.Module):
    """dy/dt = gain y^2, which leaves for infinity at time 1 / (gain y0)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(times(1.0))

    def forward(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return self.gain * y.square() + context * torch.cos(t)


def masked(y0: Tensor, ts: Tensor, adjoint: Direct | Checkpointed, field: nn.Module, **settings) -> Solution:
    gains = 0.1 * y0
    pairs = [(Kinetic(), None)]
    solver = own(on_failure="mask", **settings)
    return solve(field, y0, ts, solver=solver, adjoint=adjoint, context=gains, integrands=pairs)


class Kinetic(Integrand):
    def forward(self, at, own):
        return at.dy.square().sum(dim=1)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("rows", [False, True])
def test_a_masked_row_is_nan_where_it_did_not_come_and_no_part_of_the_gradients(adjoint, rows):
    """An exploding row among others: the gradients are those of the batch without it."""
    field, ts, kept = Exploding(), times(0.0, 0.2, 0.4, 1.0), [0, 2]
    ts = ts * times(1.0, 1.1, 0.9)[:, None] if rows else ts
    y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=torch.float64, requires_grad=True)
    together = masked(y0, ts, adjoint, field)
    assert together.stats.status[1] in (UNDERFLOW, NON_FINITE) and together.stats.status[kept].sum() == 0
    assert together.ys[1, :3].isfinite().all() and together.ys[1, 3].isnan() and together.integrals[1, 3].isnan()
    assert together.ys[kept].isfinite().all() and together.stats.error.isfinite().all()
    without = masked(y0[kept], ts[kept] if rows else ts, adjoint, field)
    assert torch.allclose(together.ys[kept], without.ys, rtol=1e-12)
    losses = [read(together_less(together, kept)), read(without)]
    for a, b in zip(*(torch.autograd.grad(loss, [y0, field.gain], retain_graph=True) for loss in losses), strict=True):
        assert a.isfinite().all() and torch.allclose(a, b, rtol=1e-9)
    everything = together.ys.nansum() + together.integrals.nansum()
    assert torch.autograd.grad(everything, y0)[0][1] == 0


def together_less(solution: Solution, kept: list[int]) -> Solution:
    """Every row, with what the failed ones did not reach read as 0."""
    ys, integrals, stats = solution.ys, solution.integrals, solution.stats
    count = int(stats.accepted[kept].max())
    estimates = stats.error[kept, :count], None, stats.stiffness[kept, :count], None
    stats = Stats(stats.counts, stats.mesh, estimates)
    return Solution(solution.ts, ys[kept], stats, integrals[kept], solution.problem, solution.solver)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_every_way_to_fail_has_its_status_and_its_row_goes_on_no_more(adjoint):
    def field(t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        late = torch.where(t.expand_as(y) > 0.7, torch.nan, -y)
        return torch.where(context == 1, late, torch.where(context == 2, torch.nan, -context * y))

    kinds, ts = times(0.5, 1.0, 2.0, 1000.0)[:, None], times(0.0, 0.5, 1.5)
    solver = own(on_failure="mask", max_steps=200)
    solution = adjoint(solver, Problem(Wrapped(field), torch.ones(4, 1, dtype=torch.float64), ts, context=kinds))
    assert solution.stats.status.tolist() == [0, NON_FINITE, NON_FINITE, TOO_MANY]
    assert solution.ys[..., 0].isnan().tolist() == [
        [False, False, False],
        [False, False, True],
        [False, True, True],
        [False, False, True],
    ]
    assert (solution.ys[:, 0] == 1).all() and solution.stats.accepted[2] == 0
    tries = solution.stats.accepted + solution.stats.rejected
    assert tries[3] == 200 and (tries <= 200).all()
    ends = (solution.stats.times + solution.stats.steps)[1].max()
    assert 0.69 < ends <= 0.7


class Wrapped(nn.Module):
    def __init__(self, field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return self.field(t, y, context)


def test_a_failed_row_stays_out_of_later_segments():
    """With a control path, a row that fails in one piece is not evaluated in the next."""
    knots = times(0.0, 0.5, 1.0, 1.5)
    xs = torch.stack([torch.stack([knots, 0 * knots], dim=1), torch.stack([knots, knots], dim=1)])
    seen: list[int] = []

    def field(t: Tensor, y: Tensor, path: ControlPath) -> Tensor:
        seen.append(len(y))
        wall = (t.expand_as(y) > 0.2) & (path.derivative(t)[:, 1:] > 0)
        return torch.where(wall, torch.nan, path.derivative(t)[:, :1] - y)

    solver = own(on_failure="mask")
    solution = solve(
        field, torch.ones(2, 1, dtype=torch.float64), knots, solver=solver, context=Hermite.through(knots, xs)
    )
    assert solution.stats.status.tolist() == [0, NON_FINITE] and seen[-1] == 1
    assert solution.ys[0].isfinite().all() and solution.ys[1, 1:].isnan().all() and solution.ys[1, 0] == 1
    assert solution.stats.nfe.sum() == sum(seen)


def test_all_rows_may_fail():
    for adjoint in ADJOINTS:
        problem = Problem(Wrapped(lambda t, y, c: y * torch.nan), start(), times(0.0, 1.0), context=start())
        solution = adjoint(own(on_failure="mask"), problem)
        assert (solution.stats.status == NON_FINITE).all() and solution.ys[:, 1].isnan().all()
        assert torch.equal(solution.ys[:, 0], start())
