"""Stochastic: strong and weak orders, the law of its noise, exactness of gradients, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.field import NOISE_TYPES, SDE, SDE_TYPES, ByValue
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import SolveError
from ndeflow.numerics.stochastic import SCHEMES, Stochastic
from tests.numerics.sdes import METHODS, Free, Growth, OrnsteinUhlenbeck, Pull, Waves, tensor

F64 = torch.float64
LEGAL = [
    (method, sde_type, noise_type)
    for method, scheme in SCHEMES.items()
    for sde_type in SDE_TYPES
    for noise_type in scheme.orders
    if sde_type in scheme.calculi or noise_type == "additive"
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@dataclass(frozen=True, eq=False)
class Coarse(Brownian):
    """The same paths in steps `ratio` times as long."""

    ratio: int = 1

    def normals(self, first_step, count, size, *, batch, dtype, device):
        fine = super().normals(
            first_step * self.ratio, count * self.ratio, size, batch=batch, dtype=dtype, device=device
        )
        return fine.unflatten(0, (count, self.ratio)).sum(dim=1) / math.sqrt(self.ratio)


FINE = 2**9
RATIOS = (64, 32, 16, 8)


def ends(sde: SDE, method: str, ratio: int, rows: int = 500) -> Tensor:
    y0 = torch.ones(rows, 1, dtype=F64)
    problem = Problem(sde, y0, tensor(0.0, 1.0), noise=Coarse(5, ratio=ratio))
    return Stochastic(method, FINE // ratio).integrate(problem).ys[:, -1]


def strong_order(sde: SDE, method: str, exact: Tensor) -> float:
    errors = [(ends(sde, method, ratio) - exact).square().mean().sqrt().log2() for ratio in RATIOS]
    steps = torch.tensor(RATIOS, dtype=F64).log2()
    error = torch.stack(errors)
    return float(((steps - steps.mean()) * (error - error.mean())).sum() / (steps - steps.mean()).square().sum())


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
@pytest.mark.parametrize(("method", "sde_type"), METHODS)
def test_strong_order_on_geometric_brownian_motion(method, sde_type, noise_type):
    normals = Brownian(5).normals(0, FINE, 1, batch=500, dtype=F64, device=torch.device("cpu"))
    w = normals.sum(dim=0) / math.sqrt(FINE)
    drift = 0.3 - (0.5 * 0.8**2 if sde_type == "ito" else 0.0)
    order = strong_order(Growth(sde_type, noise_type), method, torch.exp(drift + 0.8 * w))
    assert abs(order - SCHEMES[method].orders[noise_type]) < 0.25


def test_reversible_heun_is_at_least_of_the_order_that_is_proved():
    """1/2; with noise that commutes it is 1."""
    normals = Brownian(5).normals(0, FINE, 1, batch=500, dtype=F64, device=torch.device("cpu"))
    exact = torch.exp(0.3 + 0.8 * normals.sum(dim=0) / math.sqrt(FINE))
    order = strong_order(Growth("stratonovich"), "reversible_heun", exact)
    assert 0.5 - 0.25 < order < 1.0 + 0.25


@pytest.mark.parametrize("kind", [Pull, OrnsteinUhlenbeck])
@pytest.mark.parametrize("method", ["euler", "heun", "midpoint", "reversible_heun"])
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_strong_order_with_additive_noise_in_either_sense(method, sde_type, kind):
    order = strong_order(kind(sde_type), method, ends(kind(sde_type), "midpoint", 1))
    assert abs(order - SCHEMES[method].orders["additive"]) < 0.25


def test_mean_and_variance_of_an_ornstein_uhlenbeck_process():
    class Linear1(Pull):
        def drift(self, t, y):
            return -y

    rows, steps = 20_000, 64
    y0 = torch.full((rows, 1), 2.0, dtype=F64)
    ys = Stochastic("euler", steps).integrate(Problem(Linear1(), y0, tensor(0.0, 0.5, 1.0), noise=Brownian(1))).ys
    for n, t in ((1, 0.5), (2, 1.0)):
        var = 0.6**2 / 2 * (1 - math.exp(-2 * t))
        assert abs(ys[:, n].mean() - 2 * math.exp(-t)) < 4 * math.sqrt(var / rows) + 0.5 / steps
        assert abs(ys[:, n].var() / var - 1) < 4 * math.sqrt(2 / rows) + 1 / steps


def test_noise_is_a_brownian_motion_over_each_rows_own_times():
    rows, lengths = 20_000, tensor(0.5, 2.0)
    ts = torch.stack([torch.zeros(2, dtype=F64), 0.25 * lengths, lengths], dim=1).repeat(rows // 2, 1)
    ys = Stochastic("euler", 3).integrate(Problem(Free(2), torch.zeros(rows, 2, dtype=F64), ts, noise=Brownian(2))).ys
    first, second = ys[:, 1], ys[:, 2] - ys[:, 1]
    for parity, length in enumerate(lengths):
        a, b = first[parity::2], second[parity::2]
        tolerance = 4 * math.sqrt(2 / a.numel())
        assert abs(a.var() / (0.25 * length) - 1) < tolerance
        assert abs(b.var() / (0.75 * length) - 1) < tolerance
        assert abs((a * b).mean()) / (length * math.sqrt(0.25 * 0.75)) < tolerance
        assert abs((a[:, 0] * a[:, 1]).mean()) / (0.25 * length) < tolerance


@pytest.mark.parametrize(("method", "sde_type", "noise_type"), LEGAL)
def test_rows_do_not_depend_on_the_split_of_the_batch(method, sde_type, noise_type):
    sde, y0, index = Waves(noise_type, sde_type), torch.randn(6, 3, dtype=F64), torch.arange(10, 16)
    ts, solver = tensor(0.0, 0.4, 1.0), Stochastic(method, 5)
    whole = solver.integrate(Problem(sde, y0, ts, noise=Brownian(3, index))).ys
    part = solver.integrate(Problem(sde, y0[2:4], ts, noise=Brownian(3, index[2:4]))).ys
    torch.testing.assert_close(part, whole[2:4], rtol=1e-13, atol=1e-13)


def test_antithetic_rows_move_opposite_and_compiled_steps_make_the_same_noise():
    y0, index = torch.zeros(4, 2, dtype=F64), torch.tensor([6, 9, 7, 8])
    solver, noise = Stochastic("euler", 3), Brownian(3, index, antithetic=True)
    problem = Problem(Free(2), y0, tensor(0.0, 1.0, 3.0), noise=noise)
    ys = solver.integrate(problem).ys
    assert torch.equal(ys[:2], -ys[[2, 3]]) and ys[:, -1].all()
    system = solver.system(problem)
    drawn, numbers = solver.noises(system, 3), solver.numbers(system, 3, 3)[0]
    assert all(torch.equal(solver.noise(system, numbers, j, y0), drawn[j]) for j in range(3))


@pytest.mark.parametrize(("method", "sde_type", "noise_type"), LEGAL)
def test_checkpointed_gradients_are_those_of_the_recorded_solve(method, sde_type, noise_type):
    results = []
    for adjoint in (Direct(), Checkpointed()):
        sde = Waves(noise_type, sde_type)
        generator = torch.Generator().manual_seed(0)
        y0, context = (torch.randn(4, 3, generator=generator, dtype=F64, requires_grad=True) for _ in range(2))
        ts = tensor(0.0, 0.3, 0.3, 1.0).requires_grad_()
        solution = adjoint(Stochastic(method, 3), Problem(sde, y0, ts, context=context, noise=Brownian(3)))
        loss = (solution.ys.square() * torch.linspace(1, 2, 4, dtype=F64)[:, None]).sum()
        results.append((loss, *torch.autograd.grad(loss, [y0, context, ts, *sde.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for gradient in results[0])


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_steps_taken_back_are_the_same_where_they_are_recorded(create_graph):
    sde, results = Waves("diagonal", "stratonovich"), []
    for adjoint in (Checkpointed(), Reversible()):
        problem = Problem(sde, torch.ones(4, 3, dtype=F64), tensor(0.0, 0.3, 1.0), noise=Brownian(3))
        loss = adjoint(Stochastic("reversible_heun", 3), problem).ys.square().sum()
        results.append(torch.autograd.grad(loss, list(sde.parameters()), create_graph=create_graph))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "sde_type"), [("euler", "ito"), ("milstein", "ito"), ("heun", "stratonovich")])
def test_gradients_agree_with_differences_times_included(method, sde_type):
    sde = Waves("diagonal", sde_type)

    def states(y0, ts):
        return Stochastic(method, 2).integrate(Problem(sde, y0, ts, noise=Brownian(4))).ys

    y0 = torch.randn(2, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(states, (y0, tensor(0.1, 0.5, 1.3).requires_grad_()))
    rows = torch.stack([tensor(0.1, 0.5, 1.3), tensor(0.0, 0.2, 0.6)])
    assert torch.autograd.gradcheck(states, (y0, rows.requires_grad_()))


@pytest.mark.parametrize(("method", "sde_type", "noise_type"), LEGAL)
def test_padding_is_the_identity_with_finite_gradients(method, sde_type, noise_type):
    sde = Waves(noise_type, sde_type)
    ts = torch.stack([tensor(0.0, 0.5, 1.0, 1.5), tensor(0.0, 0.5, 0.5, 0.5), tensor(1.0, 1.0, 1.0, 1.0)])
    ts.requires_grad_()
    y0 = torch.randn(3, 3, dtype=F64, requires_grad=True)
    ys = Stochastic(method, 2).integrate(Problem(sde, y0, ts, noise=Brownian(3))).ys
    assert torch.equal(ys[1, 1], ys[1, 2]) and torch.equal(ys[1, 1], ys[1, 3])
    assert torch.equal(ys[2], y0[2].expand(4, 3))
    alone = Stochastic(method, 2).integrate(Problem(sde, y0[1:2], ts[1:2, :2], noise=Brownian(3, torch.tensor([1]))))
    torch.testing.assert_close(alone.ys[0, 1], ys[1, 3])
    gradients = torch.autograd.grad(ys.square().sum(), [y0, ts, *sde.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_shared_and_equal_times_per_row_agree():
    sde, y0, ts = Waves(), torch.randn(4, 3, dtype=F64), tensor(0.0, 0.4, 1.0)
    a, b = (
        Stochastic("milstein", 3).integrate(Problem(sde, y0, times, noise=Brownian(3))).ys
        for times in (ts, ts.expand(4, 3))
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


class Square(Integrand):
    def forward(self, at, own):
        return at.y.square().sum(dim=1)


class WithRate(Waves):
    """Waves whose drift gives one rate of its own, sum y."""

    def drift(self, t, y, *context):
        return super().drift(t, y, *context), y.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("per_row", [False, True])
def test_integrals_have_the_steps_quadrature_and_leave_the_state_alone(noise_type, per_row):
    y0, ts = torch.randn(4, 3, dtype=F64), torch.linspace(0, 1, 6, dtype=F64)
    ts = ts.expand(4, 6) if per_row else ts
    noise = Brownian(3)
    plain = Stochastic("euler").integrate(Problem(Waves(noise_type), y0, ts, noise=noise)).ys
    problem = Problem(WithRate(noise_type), y0, ts, integrands=((Square(), None),), noise=noise)
    solution = Stochastic("euler").integrate(problem)
    torch.testing.assert_close(solution.ys, plain)
    rates = torch.stack([plain.sum(dim=-1), plain.square().sum(dim=-1)], dim=-1)[:, :-1]
    exact = torch.cat([torch.zeros(4, 1, 2, dtype=F64), 0.2 * rates.cumsum(dim=1)], dim=1)
    torch.testing.assert_close(solution.integrals, exact)


def test_integrals_under_heun_are_trapezes():
    y0, ts = torch.randn(4, 3, dtype=F64), tensor(0.0, 0.2)
    problem = Problem(Waves("scalar", "stratonovich"), y0, ts, integrands=((Square(), None),), noise=Brownian(3))
    solution = Stochastic("heun").integrate(problem)
    euler = Stochastic("euler").integrate(Problem(Waves("scalar", "ito"), y0, ts, noise=Brownian(3))).ys[:, 1]
    trapeze = 0.1 * (y0.square() + euler.square()).sum(dim=1)
    torch.testing.assert_close(solution.integrals[:, 1, 0], trapeze)


def test_cost_and_mesh():
    y0, ts = torch.randn(4, 3, dtype=F64), tensor(0.0, 0.5, 2.0)
    for method, sde_type, evaluations in (("euler", "ito", 1), ("milstein", "ito", 1), ("heun", "stratonovich", 2)):
        solution = Stochastic(method, 2).integrate(
            Problem(Waves("diagonal", sde_type), y0, ts, noise=Brownian(3), keep_mesh=True)
        )
        stats = solution.stats
        assert stats.nfe.tolist() == [4 * evaluations] * 4
        assert stats.accepted.tolist() == [4] * 4 and stats.rejected.tolist() == [0] * 4
        assert stats.error is None and stats.stiffness is None
        torch.testing.assert_close(stats.times[0], tensor(0.0, 0.25, 0.5, 1.25))
        torch.testing.assert_close(stats.steps[0], tensor(0.25, 0.25, 0.75, 0.75))
        torch.testing.assert_close(stats.states[:, 2], solution.ys[:, 1])


def test_a_step_is_pure_and_is_what_the_solve_does():
    sde, y0, ts = Waves("general"), torch.randn(4, 3, dtype=F64), tensor(0.0, 0.25)
    problem = Problem(sde, y0, ts, noise=Brownian(3))
    noise = problem.noise.normals(0, 1, 2, batch=4, dtype=F64, device=y0.device)[0]
    step = Stochastic("euler").step(problem, ts[0], y0, ts[1] - ts[0], noise=noise)
    torch.testing.assert_close(step.y, Stochastic("euler").integrate(problem).ys[:, 1])
    g = sde.diffusion(ts[0], y0)
    by_hand = y0 + 0.25 * sde.drift(ts[0], y0) + 0.5 * torch.einsum("bij,bj->bi", g, noise)
    torch.testing.assert_close(step.y, by_hand)


def test_probes_lie_on_the_lines_between_steps():
    problem = Problem(Waves(), torch.randn(4, 3, dtype=F64), tensor(0.0, 1.0), noise=Brownian(3), probes=tensor(0.25))
    ys = Stochastic("euler", 2).integrate(problem).ys
    halves = (
        Stochastic("euler").integrate(Problem(problem.field, problem.y0, tensor(0.0, 0.5, 1.0), noise=Brownian(3))).ys
    )
    torch.testing.assert_close(ys[:, 1], halves[:, 2])
    torch.testing.assert_close(ys[:, 2], 0.5 * (halves[:, 0] + halves[:, 1]))


def test_steps_go_from_knot_to_knot_of_a_control_path():
    class Followed(Waves):
        def drift(self, t, y, *context):
            return context[0][:, :3] - y

    knots, values = tensor(0.0, 0.3, 1.0, 2.0), torch.randn(4, 4, 3, dtype=F64)
    path, y0 = Linear.through(knots, values), torch.randn(4, 3, dtype=F64)
    sde = ByValue(Followed())
    solution = Stochastic("euler", 2).integrate(Problem(sde, y0, knots[[0, 2, 3]], context=path, noise=Brownian(3)))
    torch.testing.assert_close(solution.stats.steps[0], tensor(0.15, 0.15, 0.35, 0.35, 0.5, 0.5))
    every = Stochastic("euler", 2).integrate(Problem(sde, y0, knots, context=path, noise=Brownian(3)))
    torch.testing.assert_close(solution.ys, every.ys[:, [0, 2, 3]])
    with pytest.raises(ValueError, match="knots"):
        Stochastic("euler", 2).integrate(Problem(sde, y0, tensor(0.0, 0.5, 2.0), context=path, noise=Brownian(3)))


def test_float32_follows_float64():
    sde, y0, ts = Waves("general"), torch.randn(4, 3, dtype=F64), tensor(0.0, 0.4, 1.0)
    wide = Stochastic("euler", 10).integrate(Problem(sde, y0, ts, noise=Brownian(3))).ys
    single = Stochastic("euler", 10).integrate(Problem(sde.float(), y0.float(), ts.float(), noise=Brownian(3))).ys
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", SCHEMES)
@pytest.mark.parametrize("sde_type", SDE_TYPES)
@pytest.mark.parametrize("noise_type", NOISE_TYPES)
def test_every_combination_is_solved_or_refused_with_a_cure_that_works(method, sde_type, noise_type):
    problem = Problem(Waves(noise_type, sde_type), torch.randn(4, 3, dtype=F64), tensor(0.0, 1.0), noise=Brownian(3))
    if (method, sde_type, noise_type) in LEGAL:
        assert Stochastic(method).integrate(problem).ys.shape == (4, 2, 3)
        return
    with pytest.raises(ValueError, match="use Stochastic") as refusal:
        Stochastic(method).integrate(problem)
    cure = str(refusal.value).split('Stochastic("')[1].split('"')[0]
    Stochastic(cure).integrate(problem)


def test_wrong_settings_and_problems_are_refused_before_any_work():
    class Never(Waves):
        def drift(self, t, y, *context):
            raise AssertionError("work has started")

    sde, y0, up = Never(), torch.randn(4, 3, dtype=F64), tensor(0.0, 1.0)
    with pytest.raises(ValueError, match="expected a method among euler"):
        Stochastic("rk4")
    with pytest.raises(ValueError, match="at least 1 step"):
        Stochastic(steps=0)
    for problem, message in (
        (Problem(sde, y0, tensor(1.0, 0.0), noise=Brownian(0)), "reversed time"),
        (Problem(sde, y0, up), "noise=Brownian"),
        (Problem(sde, y0, up, noise=Brownian(0, torch.arange(3))), "the index of this batch"),
        (Problem(nn.Linear(3, 3), y0, up, noise=Brownian(0)), "RungeKutta"),
        (Problem(sde, y0[:, :2], up, noise=Brownian(0)), "noise_size of 2"),
        (Problem(sde, y0[..., None], up, noise=Brownian(0)), r"shape \(B, d\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Stochastic().integrate(problem)


def test_a_diffusion_of_the_wrong_shape_is_refused():
    class Wrong(Waves):
        def diffusion(self, t, y, *context):
            return torch.ones(len(y), 3, 3, dtype=F64)

    with pytest.raises(ValueError, match=r"expected a diffusion of shape \(4, 3\) for diagonal noise"):
        Stochastic().integrate(Problem(Wrong(), torch.randn(4, 3, dtype=F64), tensor(0.0, 1.0), noise=Brownian(0)))


def test_a_state_that_explodes_names_time_step_and_cure():
    class Exploding(Growth):
        def drift(self, t, y):
            return torch.where(t > 0.6, torch.inf, 1.0) * y

    problem = Problem(Exploding("ito"), torch.ones(3, 1, dtype=F64), tensor(0.0, 1.0), noise=Brownian(0))
    with pytest.raises(SolveError, match=r"step of size 0\.25 from time 0\.75.*more steps"):
        Stochastic("euler", 4).integrate(problem)
