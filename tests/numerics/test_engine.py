"""Compiled solves, as traced: the values, gradients and counts of eager ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.compilation import account
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import ByValue, Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite, Linear
from ndeflow.numerics.solve import solve
from tests.numerics.compiling import HEUN, LOSSES, OFF, ON, TS, Small, assert_alike, assert_right, assert_same, programs
from tests.problems import Conditions, Driven, Mixed, Net, apart, start

pytestmark = pytest.mark.usefixtures("traced")

ROWS = torch.stack([TS, TS / 2, torch.tensor([0.0, 0.2, 0.2, 0.2], dtype=torch.float64)])
BOTH = ["shared", "per_sample"]


@pytest.mark.parametrize(
    ("method", "batching"),
    [("heun", "shared"), ("bosh3", "per_sample"), ("dopri5", "shared"), ("dopri5", "per_sample"), ("tsit5", "shared")],
)
def test_every_method(method, batching):
    """States, dense output, error and stiffness, with respect to states and parameters."""
    rtol = 1e-2 if method == "heun" else 1e-4
    assert_right(Net(width=4), method=method, rtol=rtol, atol=rtol, batching=batching)


@pytest.mark.parametrize("batching", BOTH)
def test_times_of_rows_with_padding_and_backward_in_time(batching):
    field = Net(width=4)
    for ts in (ROWS, ROWS.flip(1), TS.flip(0)):
        assert_right(field, ts=ts, batching=batching)


def test_the_end_alone_of_one_row_and_of_many():
    """Without interpolated states; a row by itself has programs of its own."""
    field = Net(width=4)
    for rows in (1, 5):
        assert_right(field, rows, TS[[0, -1]], batching="per_sample")
    assert len(account(field).entries) == 1


class Measured(Driven):
    """The same with a rate of change of an integral beside it."""

    def forward(self, t, y, context):
        dy = super().forward(t, y, context)
        return dy, dy.square().sum(dim=1, keepdim=True)


def knots(rows: bool) -> Tensor:
    common = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    return torch.stack([common, common / 2, common.clamp(max=0.2)]) if rows else common


def observations(size: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 4, size, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize(("rows", "batching"), [(False, "shared"), (True, "per_sample")])
def test_control_paths_context_and_integrals(rows, batching):
    """Path coefficients, a context tensor, a field's own integral and an integrand with its own context."""
    field, mixed, y0, xs = Measured(), Mixed(), start().requires_grad_(), observations()
    gain, own = (torch.rand(*shape, dtype=torch.float64).requires_grad_() for shape in ((3, 2), (3,)))

    def run(solver):
        context = Conditions(Hermite.through(knots(rows), xs), gain)
        return solve(field, y0, knots(rows), solver=solver, context=context, integrands=[(mixed, own)])

    assert_alike(run, [y0, xs, gain, own, field.weight, mixed.weight], batching=batching)


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 4).double()

    def forward(self, t, y):
        return torch.tanh(self.lin(y)).unflatten(-1, (2, 2))


@pytest.mark.parametrize(
    "make", [lambda: Controlled(Matrix()), lambda: ByValue(Small(lambda self, t, y, x: self.lin(y) * x))]
)
def test_wrapped_fields_of_control_paths(make):
    field, y0, xs = make(), start().requires_grad_(), observations()

    def run(solver):
        return solve(field, y0, knots(False), solver=solver, context=Linear.through(knots(False), xs))

    assert_alike(run, [y0, xs, *field.parameters()])


@pytest.mark.parametrize(("shape", "batching"), [((2, 3), "per_sample"), ((), "shared")])
def test_states_of_any_shape(shape, batching):
    """A matrix a row, and a number a row."""
    field = Small(lambda self, t, y: torch.tanh(self.lin.weight.sum() * y + self.lin.bias[0]) * torch.cos(t))
    y0 = torch.linspace(-1, 1, 2 * torch.Size(shape).numel(), dtype=torch.float64).view(2, *shape).requires_grad_()

    def run(solver):
        return solve(field, y0, TS, solver=solver)

    assert_alike(run, [y0, field.lin.weight, field.lin.bias], batching=batching)


def test_buffers_tied_weights_and_frozen_parameters():
    field = Small(
        lambda self, t, y: torch.tanh(self.other(torch.tanh(self.lin(y * self.scale)))) + self.spare.sum() * 0
    )
    field.other = nn.Linear(2, 2).double()
    field.other.weight = field.lin.weight
    field.lin.bias.requires_grad_(False)
    field.spare = nn.Parameter(torch.ones(1, dtype=torch.float64))
    field.unused = nn.Parameter(torch.ones(1, dtype=torch.float64))
    field.register_buffer("scale", torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert_right(field)
    field.scale.mul_(3.0)
    assert_right(field)
    solve(field, start(), TS, solver=ON).ys.sum().backward()
    assert field.unused.grad is None and field.lin.bias.grad is None and field.lin.weight.grad.any()
    assert account(field).versions.known[1:] == []


def test_buffers_that_need_gradients():
    """A buffer may be computed from what a model learns; its gradient flows on."""
    field, source = Small(lambda self, t, y: torch.tanh(self.lin(y)) * self.scale), torch.tensor(0.5).double()
    source.requires_grad_()
    field.register_buffer("scale", source * 2)
    y0 = start().requires_grad_()
    assert_alike(lambda solver: solve(field, y0, TS, solver=solver), [y0, source, *field.parameters()])


def test_times_that_need_gradients_are_differentiated_by_eager_products():
    field, y0, ts = Net(width=4), start().requires_grad_(), ROWS.clone().requires_grad_()
    assert_alike(lambda solver: solve(field, y0, ts, solver=solver), [y0, ts, *field.parameters()])


def test_second_derivatives():
    field, y0 = Net(width=4), start().requires_grad_()
    inputs, found = [y0, *field.parameters()], []
    for solver, adjoint in ((OFF, Direct()), (ON, Checkpointed())):
        loss = solve(field, y0, TS, solver=solver, adjoint=adjoint).ys.sin().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    assert all(apart(b, a) < 1e-10 for a, b in zip(*found, strict=True))


def test_checkpointed_and_direct_are_the_same_solve():
    field, y0, found = Net(width=4), start().requires_grad_(), []
    for adjoint in (Direct(), Checkpointed()):
        solution = solve(field, y0, TS, solver=ON, adjoint=adjoint)
        found.append(torch.autograd.grad(solution.ys.sin().sum(), [y0, *field.parameters()]))
        assert solution.stats.backward_nfe[0] > 0
    assert all(map(torch.equal, *found))


def test_one_program_serves_all_sizes_tolerances_and_times():
    field = Net(width=4)
    assert_right(field, 3)
    count = programs(field)
    for rows in (2, 7, 17, 40):
        assert_right(field, rows)
    for rtol in (1e-1, 1e-4):
        assert_right(field, rtol=rtol, atol=rtol / 3)
    for ts in (TS * 2, TS[:2], torch.linspace(0, 1, 11, dtype=torch.float64)):
        assert_right(field, ts=ts if len(ts) > 2 else torch.cat([ts, ts[-1:] * 1.5]))
    assert programs(field) == count and len(account(field).entries) == 1
    assert_right(field, 1)
    alone = programs(field)
    assert_right(field, 1, ts=TS * 3)
    assert programs(field) == alone <= 2 * count


def test_new_values_of_context_need_no_new_program():
    field, y0 = Small(lambda self, t, y, c: torch.tanh(self.lin(y) + c)), start().requires_grad_()
    for seed in range(3):
        c = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        assert_alike(lambda solver, c=c: solve(field, y0, TS, solver=solver, context=c), [y0, c, *field.parameters()])
    assert len(account(field).entries) == 1 and programs(field) == 3


def test_states_without_gradients_are_the_same():
    field = Net(width=4)
    with torch.no_grad():
        eager, compiled = (solve(field, start(), TS, solver=solver) for solver in (OFF, ON))
    assert apart(compiled.ys, eager.ys) < 1e-14 and not compiled.ys.requires_grad
    assert {name for entry in account(field).entries.values() for name, _ in entry.programs} == {"start", "step"}


@pytest.mark.parametrize("batching", BOTH)
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_what_steps_keep_is_used_once_and_then_made_again(adjoint, batching):
    """Direct evaluates again the slope at the start alone, until the graph is used a second time."""
    field, y0 = Net(width=4), start().requires_grad_()
    solver = RungeKutta(**HEUN, compile="on", batching=batching)
    solution = solve(field, y0, TS[[0, -1]], solver=solver, adjoint=adjoint)
    inputs, spent = [y0, *field.parameters()], []
    found = []
    for _ in range(2):
        found.append(torch.autograd.grad(solution.ys.square().sum(), inputs, retain_graph=True))
        spent.append(solution.stats.backward_nfe[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    forward = int(solution.stats.nfe.max())
    if batching == "shared":
        once = forward - 1 - 2 * int(solution.stats.rejected[0])  # all but the start's second and rejected steps
        assert spent == ([1, 1 + once] if isinstance(adjoint, Direct) else [once, 2 * once])


def test_gradients_may_be_written_to():
    """What a solve gives back is nobody else's, nor one another's; one without a step gives none of its parameters."""
    field, y0, scale = Net(width=4), start().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    inputs = [y0, *field.parameters()]
    for ts in (TS, TS, TS * 0):
        found, wanted = (
            torch.autograd.grad(solve(field, y0, ts, solver=solver).ys.sum(), inputs, allow_unused=True)
            for solver in (ON, OFF)
        )
        assert all(a is b is None or apart(a, b) < 1e-12 for a, b in zip(found, wanted, strict=True))
        there = [x for x in found if x is not None]
        loss = (scale * there[-1]).sum()
        for x in there[:-1]:
            x.fill_(7.0)
        loss.backward()
        there[0].mul_(scale)


def test_the_gradient_of_estimates_is_made_when_wanted_and_said(caplog):
    field, y0 = Net(width=4), start().requires_grad_()
    solution = solve(field, y0, TS[[0, -1]], solver=ON)
    before, seconds = len(caplog.messages), account(field).seconds
    solution.stats.error.sum().backward()
    assert ["the gradient of the estimates" in line for line in caplog.messages[before:]] == [True, True]
    assert account(field).seconds > seconds


def test_each_product_starts_from_no_more_than_is_asked(caplog):
    """Of a step's inside: nothing, the state halfway, error or stiffness, each with a product of its own."""
    field, y0 = Net(width=4), start().requires_grad_()
    ts, solver = torch.linspace(0, 1.5, 7, dtype=torch.float64), RungeKutta("dopri5", compile="on")

    def used(read) -> list[int]:
        solution, found = solve(field, y0, ts, solver=solver), []
        caplog.clear()
        read(solution).backward()
        for entry in account(field).entries.values():
            for halves in entry.programs.get(("halves", False), []):
                found += halves.rests
        return sorted(found)

    assert used(lambda s: s.stats.stiffness_norms.sum()) == [0, 3]
    assert used(lambda s: s.ys.sum()) == [0, 1, 3]
    assert "the gradient of the states inside steps" in caplog.text and "estimates" not in caplog.text
    assert used(lambda s: s.stats.error_norms.sum()) == [0, 1, 2, 3]
    assert used(lambda s: s.stats.error.sum() + s.stats.stiffness_norms.sum()) == [0, 1, 2, 3, 4]


def test_the_mesh_is_kept():
    problem = Problem(Net(width=4), start(), TS, keep_mesh=True)
    eager, compiled = (Direct()(solver, problem).stats for solver in (OFF, ON))
    assert apart(compiled.states, eager.states) < 1e-13 and apart(compiled.steps, eager.steps) < 1e-12


def test_failed_rows_are_masked():
    """One row blows up; the others and their gradients are as without it."""
    field = Small(lambda self, t, y: self.lin.weight.sum() ** 2 * y * y)
    y0 = torch.tensor([[0.1, 0.2], [1e200, 1e200], [-1.0, 0.3]], dtype=torch.float64, requires_grad=True)

    def run(solver):
        return solve(field, y0, TS[[0, -1]] * 5, solver=solver)

    losses = [(lambda s: s.ys[[0, 2]].sum(), 1e-12)]
    settings = {"method": "heun", "batching": "per_sample", "on_failure": "mask"}
    eager, compiled = (run(RungeKutta(**settings, compile=compile)) for compile in ("off", "on"))
    assert torch.equal(eager.stats.status != 0, torch.tensor([False, True, False]))
    assert torch.equal(compiled.stats.status, eager.stats.status)
    for read, bound in losses:
        wanted, found = (torch.autograd.grad(read(s), [y0, field.lin.weight]) for s in (eager, compiled))
        assert all(apart(b, a) < bound for a, b in zip(wanted, found, strict=True))


def test_autocast():
    """State, carry and time stay in single precision; the gradients are those of eager autocast."""
    dtypes = set()

    def rate(self, t, y):
        dtypes.update((t.dtype, y.dtype))
        return torch.tanh(self.lin(y)) * torch.cos(t)

    field, y0, found = Small(rate).float(), start(dtype=torch.float32).requires_grad_(), []
    for compile in ("off", "on"):
        solver = RungeKutta("heun", 1e-2, 1e-2, compile=compile)
        with torch.autocast("cpu", torch.bfloat16):
            solution = solve(field, y0, TS, solver=solver, adjoint=Checkpointed())
        found.append([solution.ys, *torch.autograd.grad(solution.ys.sum(), [y0, *field.parameters()])])
    assert dtypes == {torch.float32}
    assert all(apart(b.detach(), a.detach()) < 2e-2 for a, b in zip(*found, strict=True))
    assert solve(field, y0, TS, solver=ON).ys.dtype == torch.float32 and len(account(field).entries) == 2


def test_rates_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"expected the field to return the shape of the state \(3, 2\)"):
        solve(Small(lambda self, t, y: self.lin(y)[:, :1]), start(), TS, solver=ON)


def test_shape_branches_get_programs_of_their_own_and_then_none():
    """A third branch is evaluated as it is."""

    def rate(self, t, y):
        rows = y.shape[0]
        return torch.tanh(self.lin(y)) * (1.0 if rows < 4 else 2.0 if rows < 8 else 3.0)

    field = Small(rate)
    for rows in (3, 5, 9, 2, 6, 10):
        assert_right(field, rows)
    (entry,) = account(field).entries.values()
    assert [p is None for p in entry.programs["halves", False]] == [False, False, True]


class Encoded(nn.Module):
    """A field that owns what its start, its context and its times are made with, as a model's does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.inner = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
        self.end = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.inner(y)) + context


@pytest.mark.parametrize("free_end", [False, True])
def test_what_the_start_is_made_with_may_belong_to_the_field(traced, free_end) -> None:
    field, gradients = Encoded(), []
    for solver in (OFF, ON):
        y0 = field.encoder(torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)).sin()
        ts = torch.stack([torch.zeros_like(field.end), field.end.exp() if free_end else field.end.detach()])
        solution = solve(field, y0, ts, solver=solver, context=y0.cos())
        found = torch.autograd.grad(solution.ys.square().sum(), list(field.parameters()), allow_unused=not free_end)
        gradients.append([x for x in found if x is not None])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


class Transposed(nn.Module):
    """Gives its rates as they lie by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (self.weight @ y.tanh().t()).t()


def test_rates_that_lie_by_columns_reach_the_programs_as_they_were_traced():
    """As rows leave, their number becomes one that a program was traced for, and what is left of them lies by rows."""
    field, ts = Transposed(), torch.tensor([0.0, 3.0], dtype=torch.float64)
    for rows in (4, 5, 4):
        y0 = torch.logspace(-2, 1, 2 * rows, dtype=torch.float64).view(rows, 2).requires_grad_()
        for batching in ("per_sample", "shared"):
            assert_alike(lambda s, y0=y0: solve(field, y0, ts, solver=s), [y0, field.weight], batching=batching)


@pytest.mark.usefixtures("short")
def test_times_of_rows_reach_the_programs_as_they_were_traced():
    """However they lie: as many as rows at first, by columns, the same in all rows, the first of them twice."""
    y0 = start().requires_grad_()
    grid = torch.linspace(0.5, 1.0, len(y0), dtype=torch.float64).unsqueeze(1) * torch.arange(len(y0))
    few = grid[:, :2]
    layouts = grid, few, few.t().contiguous().t(), few[:1].expand_as(few), torch.cat([few[:, :1], few], dim=1)
    for first in layouts:
        field = Net()
        for ts in (first, *layouts):
            eager, compiled = (
                solve(field, y0, ts, solver=FixedRungeKutta("midpoint", steps=2, compile=compile))
                for compile in ("off", "on")
            )
            assert_same(eager, compiled, [y0, *field.parameters()], LOSSES[:1])
