"""Solvers of stochastic differential equations on problems drawn at random, against themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from ndeflow.numerics.adaptive_stochastic import PAIRS, AdaptiveStochastic, solves
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import NOISE_TYPES, SDE, SDE_TYPES
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import Adjoint, Solution, SolveError
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import SCHEMES, Stochastic
from tests.numerics.drawn_sdes import F64, Case, Drawn, sdes
from tests.numerics.test_fuzz import fuzz
from tests.problems import apart


def near(a: Solution, b: Solution, rows: list[int] | None = None, within: float = 1e-10) -> bool:
    """Whether a solution is that of some rows of another one."""
    pairs = ((a.ys, b.ys), (a.integrals, b.integrals))
    return all(x.numel() == 0 or apart(x, y if rows is None else y[rows]) < within for x, y in pairs)


@fuzz(40)
@given(case=sdes())
@torch.no_grad()
def test_meshes_hold_the_save_times_and_every_place_where_a_path_was_seen(case):
    problem, field = case.problem, case.plain
    solution = case.solved()
    stats, ts = solution.stats, problem.ts.expand(len(problem.y0), -1)
    assert torch.equal(solution.ys[:, 0], problem.y0) and solution.ys.isfinite().all()
    again = ts[:, 1:] == ts[:, :-1]
    assert torch.equal(solution.ys[:, 1:][again], solution.ys[:, :-1][again])
    assert stats.nfe.sum() == field.rows if case.solver.apart else stats.nfe.eq(field.calls).all()
    times, steps, _, accepted = stats.attempts
    for row, (start, size) in enumerate(zip(times, steps, strict=True)):
        moved, kept = size > 0, accepted[row] & (size > 0)
        mesh = torch.cat([ts[row, :1], (start + size)[kept]])
        seen = torch.cat([ts[row], start[moved], (start + size)[moved]])
        assert ((mesh - seen[:, None]).abs().amin(dim=1) <= 1e-12 * (1 + ts.abs().max())).all()
        assert (mesh.diff() > 0).all()


@fuzz(30)
@given(case=sdes(), data=st.data())
@torch.no_grad()
def test_rows_may_be_permuted_and_what_comes_later_changes_nothing(case, data):
    problem = case.problem
    rows = data.draw(st.permutations(range(len(problem.y0))))
    whole = case.solved()
    permuted = case.of(rows).solved()
    assert near(permuted, whole, rows) and torch.equal(permuted.stats.nfe, whole.stats.nfe[rows])
    if not isinstance(case.solver, AdaptiveStochastic) or case.solver.apart:
        part = rows[: data.draw(st.integers(1, len(rows)))]
        alone = case.of(part).solved()
        assert near(alone, whole, part)
        assert not case.solver.apart or torch.equal(alone.stats.accepted, whole.stats.accepted[part])
    count = data.draw(st.integers(2, problem.ts.shape[-1]))
    early = case.at(problem.ts[..., :count]).solved()
    assert apart(early.ys, whole.ys[:, :count]) < 1e-12


@fuzz(20)
@given(case=sdes(adaptive=False))
@torch.no_grad()
def test_save_times_between_fixed_steps_are_read_from_the_same_path(case):
    """Twice as many steps, or as many between twice as many times: their numbers are the same."""
    assume(case.plain is case.problem.field)  # the knots of a path would be other ones
    ts, solver = case.problem.ts, case.solver
    halves = torch.stack([ts[..., :-1], (ts[..., :-1] + ts[..., 1:]) / 2], dim=-1).flatten(-2)
    often = case.at(torch.cat([halves, ts[..., -1:]], dim=-1)).solved()
    fine = replace(case, solver=replace(solver, steps=2 * solver.steps)).solved()
    assert apart(often.ys[:, ::2], fine.ys) < 1e-10


@fuzz(25)
@given(case=sdes())
@torch.no_grad()
def test_opposite_paths_from_opposite_starts_are_opposite(case):
    """The field is odd in the state and the noise; so are all methods but Milstein's, which looks ahead one way."""
    assume(case.solver.method != "milstein")
    problem = case.problem
    keys = torch.arange(len(problem.y0)) * 2
    pair = [
        replace(case, problem=replace(problem, y0=sign * problem.y0, noise=Brownian(3, keys + k, antithetic=True)))
        for k, sign in ((0, 1.0), (1, -1.0))
    ]
    one, other = (x.solved() for x in pair)
    assume(torch.equal(one.stats.times, other.stats.times))  # an adaptive first step is judged by one noise for both
    assert apart(-other.ys, one.ys) < 1e-12 and torch.equal(one.stats.nfe, other.stats.nfe)
    assert not problem.integrands or apart(other.integrals, one.integrals) < 1e-12


def gradients(case: Case, adjoint: Adjoint) -> list[Tensor]:
    """Values, and gradients of a loss on all that is differentiable for all that can have one."""
    own = case.problem
    y0, ts = (x.clone().requires_grad_() for x in (own.y0, own.ts))
    context = own.context.clone().requires_grad_() if isinstance(own.context, Tensor) else own.context
    ts = ts if case.plain is own.field else own.ts  # the times of a path's knots are its own
    solution = replace(case, problem=replace(own, y0=y0, ts=ts, context=context)).solved(adjoint)
    loss = solution.ys.sin().sum() + solution.integrals.square().sum()
    if solution.stats.error is not None and not isinstance(adjoint, Reversible):
        loss = loss + solution.stats.error.square().sum()
    wanted = [x for x in (y0, ts, context, *case.plain.parameters()) if isinstance(x, Tensor) and x.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [solution.ys.detach(), solution.integrals.detach(), solution.stats.nfe.double(), *found]


@fuzz(25)
@given(case=sdes())
def test_adjoints_give_the_values_and_gradients_of_autograd(case):
    direct = gradients(case, Direct())
    adjoints: list[Adjoint] = [Checkpointed()]
    if isinstance(case.solver, Stochastic) and case.solver.reversible and case.problem.field is case.plain:
        adjoints.append(Reversible())
    for adjoint in adjoints:
        for found, wanted in zip(gradients(case, adjoint), direct, strict=True):
            assert wanted.isfinite().all() and (not wanted.any() or apart(found, wanted) < 1e-7)


ADJOINTS = [Direct(), Checkpointed()]
COMPILED = [(Stochastic("milstein", 2), Direct()), (AdaptiveStochastic(batching="per_sample"), Checkpointed())]
FIELD = Drawn("diagonal", "ito", 2, 2, 3)  # one for all examples, so that few programs are traced


@pytest.mark.usefixtures("short")
@fuzz(6)
@given(data=st.data())
def test_traced_steps_are_the_eager_ones(traced, data):
    solver, adjoint = data.draw(st.sampled_from(COMPILED))
    rows, seed = data.draw(st.integers(2, 5)), data.draw(st.integers(0, 99))
    y0 = torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    ts = torch.linspace(0, 1, data.draw(st.integers(2, 4)), dtype=F64)
    found = []
    for compile in ("off", "on"):
        own = replace(solver, compile=compile)
        solution = solve(FIELD, y0, ts, solver=own, adjoint=adjoint, noise=Brownian(seed))
        loss = solution.ys.sin().sum()
        found.append([solution.ys.detach(), solution.stats.nfe.double(), *torch.autograd.grad(loss, [y0, FIELD.inner])])
    assert max(apart(b, a) for a, b in zip(*found, strict=True)) < 1e-9


@fuzz(60)
@given(data=st.data())
def test_what_cannot_be_solved_is_refused_with_the_cure(data):
    field = Drawn(data.draw(st.sampled_from(NOISE_TYPES)), data.draw(st.sampled_from(SDE_TYPES)), 1, 1, 0)
    y0, ts = torch.ones(3, 1, dtype=F64), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    fixed, method = data.draw(st.booleans()), data.draw(st.sampled_from([*SCHEMES]))
    adaptive = data.draw(st.sampled_from([*PAIRS]))
    solver = Stochastic(method) if fixed else AdaptiveStochastic(adaptive, 0.1, 0.1)
    scheme = SCHEMES[method]
    legal = solves(PAIRS[adaptive], field)
    if fixed:
        legal = field.noise_type in scheme.orders
        legal &= field.sde_type in scheme.calculi or field.noise_type == "additive"
    wrong = data.draw(st.sampled_from(["backward", "complex", "flat", "index", "ode", None][: 6 - legal]))
    y0 = {"complex": y0 + 0j, "flat": y0[:, 0]}.get(wrong, y0)
    ts = ts.flip(0) if wrong == "backward" else ts
    noise = {"index": Brownian(1, torch.arange(2)), "ode": None}.get(wrong, Brownian(1))
    with pytest.raises(ValueError, match=r"expected .*, got .*"):
        solve(nn.Linear(1, 1) if wrong == "ode" else field, y0, ts, solver=solver, noise=noise)


class Failing(SDE):
    """Rows whose context is 1 explode, with 2 are NaN at once, with 3 have no diffusion after 0.7; the others turn."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=1)
        self.gain = nn.Parameter(torch.ones((), dtype=F64))

    def drift(self, t: Tensor, y: Tensor, kind: Tensor) -> Tensor:
        kind = kind.view(-1, 1)
        rate = self.gain * torch.sin(y)
        return torch.where(kind == 1, rate + 1e3 * (1 + y * y) ** 2, torch.where(kind == 2, torch.nan, rate))

    def diffusion(self, t: Tensor, y: Tensor, kind: Tensor) -> Tensor:
        late = (kind.view(-1, 1) == 3) & (t > 0.7)
        return torch.where(late, torch.nan, 0.3 * torch.cos(y) * self.gain)


@fuzz(30)
@given(data=st.data())
def test_masked_rows_leave_the_others_alone(data):
    kinds = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))).double()
    y0, ts = torch.linspace(0.1, 1.0, len(kinds), dtype=F64)[:, None], torch.linspace(0, 1, 4, dtype=F64)
    if data.draw(st.booleans()):
        ts = torch.stack([ts] * len(kinds))
    adaptive = AdaptiveStochastic(data.draw(st.sampled_from(["heun", "milstein"])), 0.1, 0.1, batching="per_sample")
    fixed = Stochastic(data.draw(st.sampled_from(["euler", "milstein"])), 12)
    solver = replace(data.draw(st.sampled_from([fixed, adaptive])), compile="off")
    adjoint, good = data.draw(st.sampled_from(ADJOINTS)), kinds == 0
    y0.requires_grad_(data.draw(st.booleans()))
    if not good.all():
        with pytest.raises(SolveError, match=r"time [-\d.e+]+.*row \d|row \d.* time [-\d.e+]+"):
            solve(Failing(), y0, ts, solver=solver, context=kinds, noise=Brownian(5), adjoint=adjoint)
    masks = replace(solver, on_failure="mask")
    found = solve(Failing(), y0, ts, solver=masks, context=kinds, noise=Brownian(5), adjoint=adjoint)
    lost = found.ys.isnan().any(dim=2)
    assert torch.equal(found.stats.status == 0, good) and torch.equal(found.ys[:, 0], y0)
    assert not lost[good].any() and lost[~good, -1].all() and (lost.long().diff(dim=1) >= 0).all()
    if good.any():
        keys = torch.arange(len(kinds))[good]
        own = ts[good] if ts.dim() == 2 else ts
        alone = solve(Failing(), y0[good], own, solver=solver, context=kinds[good], noise=Brownian(5, keys))
        assert apart(found.ys[good].detach(), alone.ys.detach()) < 1e-12
        assert torch.equal(found.stats.accepted[good], alone.stats.accepted)
    if y0.requires_grad:
        (grad,) = torch.autograd.grad(found.ys.nan_to_num(0.0).sum(), y0)
        assert grad.isfinite().all()
