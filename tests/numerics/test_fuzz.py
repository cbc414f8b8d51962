"""The adaptive engine on problems drawn at random, against SciPy and against itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ndeflow.numerics import lowering
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.solve import solve
from tests.numerics.drawn import Case, cases
from tests.problems import apart

DOUBLE = (torch.float64,)


def fuzz(examples: int) -> settings:
    """So many examples, the same at every run, and nothing written."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def near(found: Tensor, exact: np.ndarray, case: Case) -> bool:
    """Whether an error is within 300 tolerances and 300 roundings, relative to the largest value or 1."""
    bound = 300 * (case.tolerance + torch.finfo(case.problem.y0.dtype).eps)
    return float(np.abs(found.detach().numpy() - exact).max()) <= bound * max(1.0, float(np.abs(exact).max()))


@fuzz(40)
@given(case=cases())
@torch.no_grad()
def test_solutions_are_scipys(case):
    field, y0 = case.problem.field, case.problem.y0
    solution, (ys, integrals) = case.solved(), case.exact()
    stats = solution.stats
    assert solution.ys.dtype == y0.dtype and torch.equal(solution.ys[:, 0], y0)
    assert near(solution.ys, ys, case)
    if case.problem.integrands:
        assert (solution.integrals[:, 0] == 0).all() and near(solution.integrals[..., 0], integrals, case)
    assert stats.status.eq(0).all() and (stats.nfe.sum() == field.rows if case.solver.apart else
                                         stats.nfe.eq(field.calls).all())  # fmt: skip
    again = case.times[:, 1:] == case.times[:, :-1]
    assert torch.equal(solution.ys[:, 1:][again], solution.ys[:, :-1][again])
    assert solution.ys[:, 1:].isfinite().all()


@fuzz(25)
@given(case=cases(adaptive=False, most=8))
@torch.no_grad()
def test_fixed_steps_are_scipys(case):
    solution, (ys, integrals) = case.solved(), case.exact()
    assert torch.equal(solution.ys[:, 0], case.problem.y0) and near(solution.ys, ys, case)
    assert not case.problem.integrands or near(solution.integrals[..., 0], integrals, case)
    assert solution.stats.nfe.eq(case.problem.field.calls).all()
    covered(solution, case)


def covered(solution, case: Case) -> None:
    """The accepted steps of each row lead from its first to its last time without a gap."""
    stats, ts = solution.stats, case.problem.ts.expand(len(case.problem.y0), -1)
    starts, ends = stats.times, stats.times + stats.steps
    slack = 1e-13 * (ts.abs().amax(dim=1, keepdim=True) + (ts[:, -1:] - ts[:, :1]).abs())
    assert stats.times.shape[1] == stats.accepted.max()
    if stats.times.shape[1]:
        assert ((starts[:, :1] - ts[:, :1]).abs() <= slack).all() and ((ends[:, -1:] - ts[:, -1:]).abs() <= slack).all()
        assert ((ends[:, :-1] - starts[:, 1:]).abs() <= slack).all()
        assert (stats.steps * (ts[:, -1:] - ts[:, :1]) >= 0).all()
    else:
        assert (ts[:, 0] == ts[:, -1]).all()


@fuzz(40)
@given(case=cases())
@torch.no_grad()
def test_steps_cover_the_span_and_do_not_depend_on_what_is_read(case):
    own = replace(case.problem, keep_mesh=True)
    solution = replace(case, problem=own).solved()
    covered(solution, case)
    stats, tries = solution.stats, solution.stats.attempts
    moved = stats.steps != 0
    assert stats.error is None or (stats.error.isfinite().all() and stats.error.shape == stats.steps.shape)
    assert torch.equal(tries.times[tries.accepted & (tries.steps != 0)], stats.times[moved])
    assert stats.states.isfinite().all()
    ends = case.at(own.ts[..., [0, -1]]).solved()
    assert torch.equal(ends.ys[:, -1], solution.ys[:, own.ts.shape[-1] - 1])
    assert torch.equal(ends.stats.steps, stats.steps) and torch.equal(ends.stats.nfe, stats.nfe)
    some = list(range(0, own.ts.shape[-1], 3))
    thinned = case.at(torch.cat([own.ts[..., some], own.ts[..., -1:]], dim=-1)).solved()
    assert apart(thinned.ys[:, :-1], solution.ys[:, some]) <= 1e-14 + torch.finfo(solution.ys.dtype).eps


@fuzz(12)
@given(case=cases(dtypes=(torch.float64, torch.complex128), batchings=("per_sample",), tightest=-8.0), data=st.data())
@torch.no_grad()
def test_rows_that_step_apart_do_not_know_each_other(case, data):
    rows = data.draw(st.permutations(range(len(case.problem.y0))))
    together, permuted = case.solved(), case.of(rows).solved()
    cut = data.draw(st.integers(1, len(rows)))
    parts = [case.of(part).solved() for part in (rows[:cut], rows[cut:]) if part]
    assert apart(permuted.ys, together.ys[rows]) < 1e-11
    assert apart(torch.cat([part.ys for part in parts]), together.ys[rows]) < 1e-11
    for name in ("nfe", "accepted", "rejected"):
        wanted = getattr(together.stats, name)[rows]
        assert torch.equal(getattr(permuted.stats, name), wanted)
        assert torch.equal(torch.cat([getattr(part.stats, name) for part in parts]), wanted)


@fuzz(20)
@given(case=cases(dtypes=DOUBLE, batchings=("shared",)), data=st.data())
@torch.no_grad()
def test_rows_that_step_together_may_be_permuted(case, data):
    rows = data.draw(st.permutations(range(len(case.problem.y0))))
    together, permuted = case.solved(), case.of(rows).solved()
    assert apart(permuted.ys, together.ys[rows]) < 1e-11 and torch.equal(permuted.stats.nfe, together.stats.nfe)


def watched(case: Case) -> tuple[Case, list[Tensor]]:
    """The case with gradients of all that can have them, and these leaves."""
    own = case.problem
    y0, ts = (x.clone().requires_grad_() for x in (own.y0, own.ts))
    context = None if own.context is None else own.context.clone().requires_grad_()
    inputs = [x for x in (y0, ts, context, own.field.gain) if x is not None]
    return replace(case, problem=replace(own, y0=y0, ts=ts, context=context)), inputs


def read(solution) -> Tensor:
    """A loss on all that is differentiable."""
    stats, loss = solution.stats, solution.ys.abs().sin().sum() + solution.integrals.abs().square().sum()
    return loss + sum(x.square().sum() for x in (stats.error, stats.stiffness) if x is not None)


@fuzz(20)
@given(case=cases(dtypes=(torch.float64, torch.complex128), most=9, tightest=-6.0))
def test_checkpointed_gradients_are_directs(case):
    case, inputs = watched(case)
    found = []
    for adjoint in (Direct(), Checkpointed()):
        found.append(torch.autograd.grad(read(case.solved(adjoint)), inputs, materialize_grads=True))
    for direct, again in zip(*found, strict=True):
        assert direct.isfinite().all() and apart(again, direct) < 1e-9


@fuzz(12)
@given(case=cases(dtypes=DOUBLE, most=5), data=st.data())
def test_gradients_are_finite_differences(case, data):
    """Of each row, along a random direction of its state and of its context."""
    case = case.under(method="dopri5", rtol=1e-10, atol=1e-10)
    case, _ = watched(case)
    y0, context = case.problem.y0, case.problem.context
    direction = torch.from_numpy(np.random.default_rng(data.draw(st.integers(0, 999))).uniform(-1, 1, y0.shape))

    def rows(step: float) -> Tensor:
        moved = replace(case.problem, y0=y0 + step * direction, context=None if context is None else context + step)
        return replace(case, problem=moved).solved().ys.flatten(1).sum(dim=1)

    leaves = [x for x in (y0, context) if x is not None]
    grads = torch.autograd.grad(rows(0.0).sum(), leaves, materialize_grads=True)
    along = (grads[0] * direction).reshape(len(y0), -1).sum(dim=1) + (0 if context is None else grads[1])
    with torch.no_grad():
        difference = (rows(1e-4) - rows(-1e-4)) / 2e-4
    assert apart(along, difference) < 1e-3


class Lowered:
    """A graph as it was traced, which like machine code takes tensors of the layout that it was made for only."""

    def __init__(self, graph) -> None:
        self.graph = graph
        self.layouts = [self.of(node.meta["val"]) for node in graph.graph.nodes if node.op == "placeholder"]

    @staticmethod
    def of(x: Tensor) -> list[int]:
        """Dimensions by their strides, the longest first; a matrix within a stack is as long as there are rows."""
        sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in x.stride()]  # int() would fix them
        return sorted(range(x.dim()), key=lambda i: -sizes[i])

    def __call__(self, inputs: list[Tensor]):
        for x, layout in zip(inputs, self.layouts, strict=True):
            assert x.numel() == 0 or 1 in x.shape or self.of(x) == layout
        return self.graph.forward(*inputs)


@pytest.fixture
def traced(monkeypatch):
    """Graphs are traced and rewritten, but not compiled."""
    monkeypatch.setattr(lowering, "lower", Lowered)


class Net(nn.Module):
    """One field for all examples, so that few programs are traced."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.float64, generator=draw))

    def forward(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight + context) * torch.cos(t)


NET = Net()


def laid(x: Tensor, layout: str) -> Tensor:
    """The same values, otherwise in memory."""
    if layout == "transposed":
        return x.mT.contiguous().mT
    return x.repeat_interleave(2, dim=-1)[..., ::2] if layout == "sliced" else x


@fuzz(6)
@given(data=st.data())
def test_traced_steps_are_the_eager_ones(traced, data):
    """Values and gradients of what would be compiled, whatever the memory layout of what is given."""
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = data.draw(st.sampled_from([2, 3, 5]))
    layouts = st.sampled_from(["plain", "transposed", "sliced"])
    y0, context = (
        laid(torch.randn(rows, 2, dtype=torch.float64, generator=draw), data.draw(layouts)).requires_grad_()
        for _ in range(2)
    )
    ts = torch.linspace(0, data.draw(st.sampled_from([-2.5, -0.1, 1.0, 3.0])), 4, dtype=torch.float64)
    weights = data.draw(st.integers(0, 3))
    found = []
    for compile in ("off", "on"):
        solver = RungeKutta("dopri5", 1e-6, 1e-6, compile=compile)
        solution = solve(NET, y0, ts, solver=solver, context=context)
        terms = solution.ys.square().sum(), solution.stats.error.square().sum(), solution.stats.stiffness.mean()
        loss = sum(term for n, term in enumerate(terms) if n == 0 or weights & n)
        grads = torch.autograd.grad(loss, [y0, context, NET.weight])
        found.append([solution.ys.detach(), solution.stats.steps, solution.stats.nfe.double(), *grads])
    assert max(apart(a, b) for a, b in zip(*found, strict=True)) < 1e-6  # estimates amplify rounding


RATES = {  # what a field may give by mistake
    "wrong size": lambda t, y: torch.cat([y, y], dim=-1),
    "without rows": lambda t, y: y[0],
    "a number": lambda t, y: 1.0,
    "nothing": lambda t, y: None,
    "complex": lambda t, y: torch.complex(y, y),
    "dq without columns": lambda t, y: (y, y.reshape(len(y), -1)[:, 0]),
    "dq of other rows": lambda t, y: (y, y.new_zeros(len(y) + 1, 1)),
    "a triple": lambda t, y: (y, y.new_zeros(len(y), 1), y.new_zeros(len(y), 1)),
}
TIMES = {
    "integers": lambda ts: torch.arange(3),
    "a list": lambda ts: [0.0, 1.0],
    "unsorted": lambda ts: torch.stack([ts[0], ts[0] + 1, ts[0] + 0.5]),
    "NaN": lambda ts: torch.cat([ts, torch.full_like(ts[:1], torch.nan)]),
    "infinity": lambda ts: torch.cat([ts[:1], torch.full_like(ts[:1], torch.inf)]),
    "none": lambda ts: ts[:0],
    "a number": lambda ts: ts[0],
    "other rows": lambda ts: ts.expand(9, -1),
    "complex": lambda ts: ts.to(torch.complex128),
}
STATES = {
    "integers": lambda y: torch.ones_like(y, dtype=torch.int64),
    "a list": lambda y: y.tolist(),
    "a number": lambda y: y.sum(),
    "no rows": lambda y: y[:0],
    "no columns": lambda y: y.new_zeros(len(y), 0),
}
FIELDS = {  # where a solve cannot be carried out
    "explodes": lambda t, y: 10 * (1 + y.square()),
    "is NaN": lambda t, y: y * torch.nan,
    "is infinite": lambda t, y: y + torch.inf,
    "is NaN later": lambda t, y: torch.where(t > 0.5, torch.nan, y),
    "is NaN beyond": lambda t, y: torch.where(y > 1.9, torch.nan, 1 + 0 * y),
}


def plain(draw: st.DataObject, *, fixed: bool = True) -> tuple[Tensor, Tensor, dict]:
    """A sound state and times from 0 to 3, and how they are solved."""
    shape = draw.draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    y0 = torch.linspace(0.1, 1.0, 6, dtype=torch.float64)[: draw.draw(st.integers(1, 6))]
    y0 = y0.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    ts = torch.linspace(0, 3, draw.draw(st.integers(2, 5)), dtype=torch.float64)
    method = draw.draw(st.sampled_from(["heun", "bosh3", "dopri5", "tsit5"]))
    batching = draw.draw(st.sampled_from(["shared", "per_sample"]))
    solvers = [
        RungeKutta(method, 1e-3, 1e-3, max_steps=300, batching=batching, compile="off"),
        FixedRungeKutta("rk4", 30),
    ]
    return y0, ts, {"solver": draw.draw(st.sampled_from(solvers[: 1 + fixed])), "adjoint": Direct()}


@fuzz(60)
@given(data=st.data())
def test_what_cannot_be_solved_is_refused_with_the_cure(data):
    y0, ts, how = plain(data)
    wrong = data.draw(st.sampled_from([*(("rate", k) for k in RATES), *(("ts", k) for k in TIMES),
                                       *(("y0", k) for k in STATES)]))  # fmt: skip
    kind, name = wrong
    field = RATES[name] if kind == "rate" else (lambda t, y: -y)
    given_ts, given_y0 = TIMES[name](ts) if kind == "ts" else ts, STATES[name](y0) if kind == "y0" else y0
    with pytest.raises(ValueError, match=r"expected .*, got .*"):
        solve(field, given_y0, given_ts, **how)


@fuzz(25)
@given(data=st.data())
def test_a_solve_that_fails_says_when_and_in_which_row(data):
    y0, ts, how = plain(data)
    field = FIELDS[data.draw(st.sampled_from(sorted(FIELDS)))]
    with pytest.raises(SolveError, match=r"time [-\d.e+]+ .*row \d|row \d.* time [-\d.e+]+"):
        solve(field, y0, ts, **how)
    bad = data.draw(st.integers(0, len(y0) - 1))
    y0[bad] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    with pytest.raises(SolveError, match=rf"row {bad}"):
        solve(lambda t, y: -y, y0, ts, **how)


class Failing(nn.Module):
    """Rows whose context is 1 explode, with 2 are NaN at once, with 3 are NaN after 0.7; the others turn."""

    def forward(self, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        kind, turning = context.view(-1, *[1] * (y.dim() - 1)), torch.cos(3 * t) * y
        late = torch.where(t > 0.7, torch.nan, turning)
        return torch.where(
            kind == 1, 5 * (1 + y * y), torch.where(kind == 2, torch.nan, torch.where(kind == 3, late, turning))
        )


@fuzz(15)
@given(data=st.data())
def test_masked_rows_leave_the_others_alone(data):
    y0, ts, how = plain(data, fixed=False)
    solver = replace(how["solver"], batching="per_sample", on_failure="mask")
    kinds = torch.tensor([float(data.draw(st.integers(0, 3))) for _ in y0]).double()
    good, adjoint = kinds == 0, data.draw(st.sampled_from([Direct(), Checkpointed()]))
    y0.requires_grad_(data.draw(st.booleans()))
    found = solve(Failing(), y0, ts, solver=solver, context=kinds, adjoint=adjoint)
    assert torch.equal(found.stats.status == 0, good) and torch.equal(found.ys[:, 0], y0)
    lost = found.ys.reshape(len(y0), len(ts), -1).isnan()
    assert torch.equal(lost.all(dim=2), lost.any(dim=2)) and not lost[good].any() and lost[~good, -1].all()
    assert (lost.long().diff(dim=1) >= 0).all()
    assert found.stats.error is None or found.stats.error.isfinite().all()
    if good.any():
        alone = solve(Failing(), y0[good], ts, solver=solver, context=kinds[good])
        assert apart(found.ys[good].detach(), alone.ys.detach()) < 1e-12
        assert torch.equal(found.stats.accepted[good], alone.stats.accepted)
    if y0.requires_grad:
        (grad,) = torch.autograd.grad(found.ys.nan_to_num(0.0).sum(), y0)
        assert grad.isfinite().all()
