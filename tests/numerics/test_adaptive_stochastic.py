"""AdaptiveStochastic: errors against tolerances, the law of its solutions, one path whatever is rejected, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive_stochastic import PAIRS, AdaptiveStochastic, solves
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.field import SDE, SDE_TYPES
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.solution import Solution, SolveError
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.numerics.tree import BrownianTree
from tests.numerics.sdes import Bounded, Crosswise, Free, Growth, OrnsteinUhlenbeck, Pull, Waves, tensor
from tests.numerics.test_masking import Reads

F64 = torch.float64
LEGAL = [
    (method, sde_type, noise_type)
    for method, pair in PAIRS.items()
    for sde_type in SDE_TYPES
    for noise_type in ("diagonal", "scalar", "additive", "general")
    if solves(pair, Waves(noise_type, sde_type))
]
BATCHING = ["shared", "per_sample"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def over(noise: Brownian, start: float, stop: float, rows: int, number: int = 0) -> Tensor:
    """W over a part of the segment [0, 1]: (B, 1)."""
    device = torch.device("cpu")
    return BrownianTree(noise, 0.0, 1.0, 1, number=number)(start, stop, batch=rows, dtype=F64, device=device).w


def solved(sde: SDE, tol: float, rows: int = 300, method: str = "heun", batching: str = "per_sample") -> Solution:
    """From 1 to time 1."""
    solver = AdaptiveStochastic(method, rtol=tol, atol=tol, batching=batching)
    return solve(sde, torch.ones(rows, 1, dtype=F64), tensor(0.0, 1.0), solver=solver, noise=Brownian(5))


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar"])
@pytest.mark.parametrize(
    ("method", "sde_type", "bound"),
    [("heun", "ito", 0.05), ("heun", "stratonovich", 0.1), ("midpoint", "ito", 0.05), ("midpoint", "stratonovich", 0.1),
     ("milstein", "stratonovich", 0.4)],
)  # fmt: skip
def test_the_error_falls_with_the_tolerance(method, sde_type, bound, noise_type):
    """Of geometric Brownian motion, against the exact solution on the same path."""
    drift = 0.3 - (0.5 * 0.8**2 if sde_type == "ito" else 0.0)
    exact = torch.exp(drift + 0.8 * over(Brownian(5), 0.0, 1.0, 300))
    errors = [
        (solved(Growth(sde_type, noise_type), tol, method=method).ys[:, -1] - exact).square().mean().sqrt().item()
        for tol in (3e-2, 3e-3)
    ]
    assert errors[1] < errors[0] / (6 if PAIRS[method].parts == 1 else 2)
    assert errors[0] < bound


@pytest.mark.parametrize("batching", BATCHING)
def test_tolerances_hold_with_additive_noise(batching):
    fine = AdaptiveStochastic(rtol=1e-4, atol=1e-4, batching=batching)
    want = solve(Pull(), torch.ones(50, 1, dtype=F64), tensor(0.0, 1.0), solver=fine, noise=Brownian(5)).ys
    for method in ("heun", "midpoint", "euler"):
        errors = [(solved(Pull(), tol, 50, method, batching).ys - want).abs().max().item() for tol in (1e-2, 1e-3)]
        assert errors[1] < errors[0] / 3
        assert errors[0] < 0.1


@pytest.mark.parametrize(("method", "sde_type"), [("heun", "ito"), ("heun", "stratonovich"), ("midpoint", "ito")])
def test_the_law_of_the_solution_is_the_exact_one(method, sde_type):
    """The logarithm of geometric Brownian motion is normal: Kolmogorov-Smirnov at 1 %, mean and variance."""
    rows = 4000
    y = solved(Growth(sde_type), 1e-2, rows, method).ys[:, -1, 0].log()
    drift = 0.3 - (0.5 * 0.8**2 if sde_type == "ito" else 0.0)
    x = ((y - drift) / 0.8).sort().values
    empirical = (torch.arange(rows, dtype=F64) + 0.5) / rows
    assert (torch.special.ndtr(x) - empirical).abs().max() < 1.63 / math.sqrt(rows)
    assert abs(x.mean()) < 3.5 / math.sqrt(rows)
    assert abs(x.square().mean() - 1) < 3.5 * math.sqrt(2 / rows)


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_the_law_of_an_ornstein_uhlenbeck_process(method):
    """Mean exp(-1.5 t), variance 0.49 (1 - exp(-3 t)) / 3 and covariance at two times, within four standard errors."""
    rows, solver = 4000, AdaptiveStochastic(method, rtol=3e-3, atol=3e-3)
    ts, y0 = tensor(0.0, 0.4, 1.0), torch.ones(rows, 1, dtype=F64)
    y = solve(OrnsteinUhlenbeck("ito"), y0, ts, solver=solver, noise=Brownian(8)).ys[:, 1:, 0]
    mean, variance = torch.exp(-1.5 * ts[1:]), 0.49 * (1 - torch.exp(-3 * ts[1:])) / 3
    assert ((y.mean(dim=0) - mean).abs() < 4 * (variance / rows).sqrt()).all()
    assert ((y.var(dim=0) / variance - 1).abs() < 4 * math.sqrt(2 / rows)).all()
    covariance = variance[0] * math.exp(-1.5 * 0.6)
    assert abs(torch.cov(y.T)[0, 1] / covariance - 1) < 4 * 0.044


@pytest.mark.parametrize("method", ["heun", "midpoint"])
def test_the_law_where_diagonal_noise_depends_on_other_components(method):
    """Of dy_1 = y_2 dW_1, dy_2 = y_1 dW_2 in Ito's sense: E y = (1, 1), E y y' = (e, 1; 1, e), within four errors."""
    rows, solver = 4000, AdaptiveStochastic(method, rtol=3e-2, atol=3e-2, batching="per_sample")
    ys = solve(Crosswise(), torch.ones(rows, 2, dtype=F64), tensor(0.0, 1.0), solver=solver, noise=Brownian(4)).ys
    y, z = ys[:, -1].unbind(dim=1)
    found, want = torch.stack([y, z, y * y, z * z, y * z], dim=1), tensor(1.0, 1.0, math.e, math.e, 1.0)
    assert ((found.mean(dim=0) - want).abs() < 4 * found.std(dim=0) / math.sqrt(rows)).all()


def test_the_law_with_general_noise_is_that_of_small_fixed_steps():
    """Mean and second moment on the same number of paths, within four standard errors."""
    sde, y0, ts, rows = Waves("general", "stratonovich"), torch.ones(2000, 3, dtype=F64), tensor(0.0, 1.0), 2000
    adaptive = AdaptiveStochastic(rtol=3e-3, atol=3e-3, batching="per_sample")
    with torch.no_grad():
        a = solve(sde, y0, ts, solver=adaptive, noise=Brownian(1)).ys[:, -1]
        b = solve(sde, y0, ts, solver=Stochastic("heun", 200), noise=Brownian(2)).ys[:, -1]
    for f in (lambda y: y, lambda y: y.square()):
        error = ((f(a).var(dim=0) + f(b).var(dim=0)) / rows).sqrt()
        assert ((f(a).mean(dim=0) - f(b).mean(dim=0)).abs() < 4 * error).all()


@pytest.mark.parametrize("batching", BATCHING)
def test_the_path_is_the_tree_s_whatever_is_tried(batching):
    """dy = dW is solved without an error, so that y is W; and so is dy = -y dt + dW in the limit of small steps."""
    noise, ts = Brownian(3), tensor(0.0, 0.5, 2.0)
    free = solve(Free(1), torch.zeros(4, 1, dtype=F64), ts, solver=AdaptiveStochastic(batching=batching), noise=noise)
    first, second = math.sqrt(0.5) * over(noise, 0.0, 1.0, 4), math.sqrt(1.5) * over(noise, 0.0, 1.0, 4, number=1)
    assert torch.allclose(free.ys[:, 1:, 0], torch.cat([first, first + second], dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("method", ["heun", "milstein"])
def test_the_mesh_holds_every_place_where_the_path_was_seen(method, batching):
    sde = Growth("stratonovich")
    solution = solved(sde, 3e-3, 8, method, batching)
    times, steps, _, accepted = solution.stats.attempts
    for row in range(8):
        moved = steps[row] > 0
        starts, sizes, kept = times[row][moved], steps[row][moved], accepted[row][moved]
        seen = {*(starts + sizes).tolist(), *((starts + sizes / 2).tolist() if method == "milstein" else [])}
        ends = starts[kept] + sizes[kept]
        mesh = {0.0, *ends.tolist(), *((starts + sizes / 2)[kept].tolist() if method == "milstein" else [])}
        assert not kept.all() and seen <= mesh
        assert all(2.0**-k in sizes or (sizes.log2() == sizes.log2().round()).all() for k in range(3))


def gradients(sde: SDE, solver: AdaptiveStochastic, adjoint) -> list[Tensor]:
    y0, ts = torch.linspace(-1, 1, 12, dtype=F64).view(4, 3).requires_grad_(), tensor(0.0, 0.3, 1.0)
    solution = solve(sde, y0, ts, solver=solver, adjoint=adjoint, integrands=[(Square(), None)], noise=Brownian(3))
    stats = solution.stats
    loss = solution.ys.sin().sum() + solution.integrals.sum() + (stats.error * stats.steps).sum()
    loss = loss + stats.stiffness.sum()
    return [solution.ys.detach(), solution.stats.nfe, *torch.autograd.grad(loss, [y0, *sde.parameters()])]


class Square(Integrand):
    """The integral of |drift|^2."""

    def forward(self, at, own):
        return at.dy.square().sum(dim=1)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize(("method", "sde_type", "noise_type"), LEGAL)
def test_checkpointed_gradients_are_those_of_autograd(method, sde_type, noise_type, batching):
    sde, solver = Waves(noise_type, sde_type), AdaptiveStochastic(method, batching=batching, compile="off")
    for a, b in zip(gradients(sde, solver, Direct()), gradients(sde, solver, Checkpointed()), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "batching"),
    [("heun", "shared"), ("heun", "per_sample"), ("milstein", "per_sample"), ("euler", "shared")],
)
@pytest.mark.usefixtures("traced")
def test_compiled_solves_are_the_eager_ones(method, batching):
    sde = Waves("additive" if method == "euler" else "diagonal", "ito")
    want = gradients(sde, AdaptiveStochastic(method, batching=batching, compile="off"), Direct())
    for adjoint in (Direct(), Checkpointed()):
        found = gradients(sde, AdaptiveStochastic(method, batching=batching, compile="on"), adjoint)
        for a, b in zip(want, found, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


def test_gradients_of_times_are_those_of_small_differences():
    """Of the discrete solve on its mesh: small enough a difference changes no decision."""
    sde, y0, times = Waves(), torch.linspace(-1, 1, 12, dtype=F64).view(4, 3), tensor(0.0, 0.3, 1.0).requires_grad_()

    def loss(ts: Tensor, adjoint=Direct()) -> Tensor:  # noqa: B008
        solution = solve(sde, y0, ts, solver=AdaptiveStochastic(), adjoint=adjoint, noise=Brownian(3))
        return solution.ys.sin().sum()

    got = [torch.autograd.grad(loss(times, adjoint), times)[0] for adjoint in (Direct(), Checkpointed())]
    step = 1e-6 * torch.eye(3, dtype=F64)
    with torch.no_grad():
        want = torch.stack([(loss(times + step[i]) - loss(times - step[i])) / 2e-6 for i in range(3)])
    for found in got:
        assert torch.allclose(found, want, rtol=1e-5, atol=1e-6)


def test_rows_at_their_own_pace_do_not_depend_on_the_batch():
    sde, solver, ts = Waves(), AdaptiveStochastic(batching="per_sample"), tensor(0.0, 0.3, 1.0)
    y0, index = torch.linspace(-2, 2, 15, dtype=F64).view(5, 3), torch.tensor([7, 3, 9, 2**40, 1])
    whole = solve(sde, y0, ts, solver=solver, noise=Brownian(3, index))
    rows = torch.tensor([3, 0])
    part = solve(sde, y0[rows], ts, solver=solver, noise=Brownian(3, index[rows]))
    assert torch.allclose(whole.ys[rows], part.ys, rtol=1e-13, atol=1e-14)
    assert torch.equal(whole.stats.nfe[rows], part.stats.nfe)


@pytest.mark.parametrize("batching", BATCHING)
def test_rows_with_times_of_their_own_and_intervals_that_are_empty(batching):
    ts = tensor(0.0, 0.5, 0.5, 1.0), tensor(0.0, 0.2, 1.0, 1.0)
    solver = AdaptiveStochastic(rtol=1e-3, atol=1e-3, batching=batching)
    y0 = torch.ones(2, 1, dtype=F64).requires_grad_()
    solution = solve(Growth("ito"), y0, torch.stack(ts), solver=solver, noise=Brownian(5))
    assert torch.equal(solution.ys[0, 1], solution.ys[0, 2]) and torch.equal(solution.ys[1, 2], solution.ys[1, 3])
    (gradient,) = torch.autograd.grad(solution.ys.sum(), y0)
    assert torch.allclose(gradient, solution.ys.detach().sum(dim=1), rtol=1e-10)  # it is linear in y0
    paths = [over(Brownian(5), 0.0, 1.0, 2, number=k) for k in range(3)]
    for row, times in enumerate(ts):
        w = sum(paths[k][row] * (times[k + 1] - times[k]).sqrt() for k in range(3))
        assert abs(solution.ys[row, -1].item() - math.exp(-0.02 + 0.8 * w)) < 0.02


@pytest.mark.parametrize("solver", [AdaptiveStochastic(), AdaptiveStochastic("milstein"), Stochastic("milstein", 20)])
def test_a_row_that_stands_still_needs_no_diffusion_elsewhere(solver):
    ts, y0 = torch.stack([tensor(0.0, 0.1, 0.2), tensor(0.0, 0.1, 0.1)]), torch.full((2, 1), 1.9, dtype=F64)
    ys = solve(Bounded(), y0, ts, solver=solver, noise=Brownian(0)).ys
    assert ys.isfinite().all() and torch.equal(ys[1, 1], ys[1, 2])


def test_a_step_reads_one_number_from_the_device():
    with Reads() as reads:
        stats = solved(Growth("stratonovich"), 1e-2, 20, batching="shared").stats
    beside = 3  # whether times increase, the first step, and the smallest
    assert stats.rejected[0] > beside and reads.count == stats.accepted[0] + stats.rejected[0] + beside


def test_opposite_paths_are_opposite():
    noise = Brownian(3, torch.tensor([4, 5]), antithetic=True)
    ys = solve(Free(1), torch.zeros(2, 1, dtype=F64), tensor(0.0, 1.0), solver=AdaptiveStochastic(), noise=noise).ys
    assert torch.equal(ys[0], -ys[1]) and ys[0, 1] != 0


class Blowing(SDE):
    """dy = rate y^3 dt + 0.1 dW: explodes from afar."""

    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=1)
        self.rate = nn.Parameter(tensor(1.0)[0])

    def drift(self, t, y):
        return self.rate * y**3

    def diffusion(self, t, y):
        return 0.1 * torch.ones_like(y)


def test_a_row_that_explodes_is_said_or_masked():
    y0, ts = tensor(0.1, 3.0, -0.1)[:, None], tensor(0.0, 0.02, 1.0)
    with pytest.raises(SolveError, match=r"at time .* in row 1"):
        solve(Blowing(), y0, ts, solver=AdaptiveStochastic(), noise=Brownian(3))
    sde = Blowing()
    solver = AdaptiveStochastic(batching="per_sample", on_failure="mask")
    solution = solve(sde, y0, ts, solver=solver, noise=Brownian(3))
    assert (solution.stats.status > 0).tolist() == [False, True, False]
    assert solution.ys[1, 2].isnan().all() and solution.ys[1, :2].isfinite().all()
    (got,) = torch.autograd.grad(solution.ys[[0, 2]].sum(), sde.parameters())
    rows = torch.tensor([0, 2])
    alone = solve(sde, y0[rows], ts, solver=solver, noise=Brownian(3, rows))
    (want,) = torch.autograd.grad(alone.ys.sum(), sde.parameters())
    assert torch.allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("batching", BATCHING)
def test_a_start_that_is_not_finite_is_said(batching):
    y0 = tensor(1.0, math.nan)[:, None]
    with pytest.raises(SolveError, match=r"non-finite at time 0 in row 1"):
        solve(Growth("ito"), y0, tensor(0.0, 1.0), solver=AdaptiveStochastic(batching=batching))


@pytest.mark.parametrize(
    ("method", "sde_type", "noise_type", "cure"),
    [("euler", "ito", "diagonal", r'AdaptiveStochastic\("heun"\)'), ("milstein", "ito", "additive", "heun"),
     ("heun", "ito", "general", "Stratonovich"), ("milstein", "stratonovich", "general", "heun")],
)  # fmt: skip
def test_what_a_method_cannot_step_is_refused_with_the_cure(method, sde_type, noise_type, cure):
    with pytest.raises(
        ValueError, match=rf"expected .*, got {noise_type} noise in the sense of {sde_type}; use .*{cure}"
    ):
        solve(
            Waves(noise_type, sde_type),
            torch.ones(2, 3, dtype=F64),
            tensor(0.0, 1.0),
            solver=AdaptiveStochastic(method),
        )


def test_settings_are_checked():
    with pytest.raises(ValueError, match="expected method heun, midpoint, milstein, euler, got 'srk'"):
        AdaptiveStochastic("srk")
    with pytest.raises(ValueError, match="expected batching=per_sample for on_failure=mask"):
        AdaptiveStochastic(on_failure="mask")
    with pytest.raises(ValueError, match="expected a tolerance of at least"):
        solve(Growth("ito"), torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=AdaptiveStochastic(rtol=0.0, atol=1e-8))
    with pytest.raises(ValueError, match="expected an SDE for AdaptiveStochastic"):
        solve(nn.Identity(), torch.ones(1, 1), torch.tensor([0.0, 1.0]), solver=AdaptiveStochastic())


def test_a_step_alone_has_the_error_of_heun_and_euler():
    sde, z, h, w = Growth("stratonovich"), tensor(2.0)[:, None], tensor(0.25)[0], tensor(0.6)[:, None]
    problem = Problem(sde, z, tensor(0.0, 1.0), noise=Brownian(0))
    noise = torch.stack([w / 0.5, tensor(-0.3)[:, None]], dim=1)
    step = AdaptiveStochastic().step(problem, tensor(0.0)[0], z, h, noise=noise)
    ahead = 2.0 * (1 + 0.3 * 0.25 + 0.8 * 0.6)
    error = 0.5 * (0.25 * 0.3 + 0.6 * 0.8) * (ahead - 2.0)
    assert torch.allclose(step.y, tensor(ahead + error)) and torch.allclose(step.error, tensor(error))
    scale = 1e-2 * (1 + ahead + error)
    assert torch.allclose(step.ratio, tensor(error / scale))
    for noise, what in ((None, "none"), (w, r"\(1, 1\)")):
        with pytest.raises(ValueError, match=rf"standard normals \(B, 2, 1\), got {what}"):
            AdaptiveStochastic().step(problem, tensor(0.0)[0], z, h, noise=noise)


def test_save_times_between_knots_are_refused_without_a_cure_for_odes():
    path = Linear.through(tensor(0.0, 1.0), torch.ones(2, 2, 1, dtype=F64))
    y0, ts = torch.ones(2, 3, dtype=F64), tensor(0.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="got one between knots; save at knots only$"):
        solve(Waves(), y0, ts, context=path, solver=AdaptiveStochastic(), noise=Brownian(1))
