"""Stiffness of an SDE's steps: the slope of the drift, its gradient, and where there is nothing to estimate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adaptive_stochastic import PAIRS, AdaptiveStochastic
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.field import SDE
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stiffness import quotient
from tests.numerics.sdes import Free, Growth, Waves, tensor

F64 = torch.float64
METHODS = sorted(PAIRS)
BATCHING = ["shared", "per_sample"]


class Linear(SDE):
    """dz = A z dt + noise dW, each component with its own noise; additive for what needs that."""

    def __init__(self, matrix: Tensor, noise: float, additive: bool = False, push: float = 0.0) -> None:
        size = len(matrix)
        super().__init__(noise_type="additive" if additive else "diagonal", sde_type="ito", noise_size=size)
        self.matrix, self.noise, self.push = nn.Parameter(matrix), noise, push

    def drift(self, t, y):
        return y @ self.matrix.T + self.push * t

    def diffusion(self, t, y):
        if self.noise_type == "additive":
            return self.noise * torch.eye(y.shape[1], dtype=y.dtype).expand(len(y), -1, -1)
        return torch.full_like(y, self.noise)


def stepped(sde: SDE, y: Tensor, h: float, method: str = "heun", noise: Tensor | None = None):
    solver = AdaptiveStochastic(method, rtol=1.0, atol=1.0)
    noise = torch.randn(len(y), 2, sde.noise_size, dtype=F64) if noise is None else noise
    problem = Problem(sde, y, tensor(0.0, 1.0), noise=Brownian(0))
    return solver.step(problem, tensor(0.0)[0], y, tensor(h)[0], noise=noise)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("method", METHODS)
def test_of_a_linear_drift_it_is_the_rate(method, batching):
    sde = Linear(tensor(-7.0)[:, None], 0.5, additive=method == "euler")
    solver = AdaptiveStochastic(method, rtol=1e-2, atol=1e-2, batching=batching)
    y0 = torch.linspace(-1, 2, 4, dtype=F64)[:, None]
    stats = solve(sde, y0, tensor(0.0, 1.0), solver=solver, noise=Brownian(1)).stats
    moved = stats.steps > 0
    assert moved.sum() > 8 and torch.allclose(stats.stiffness[moved], tensor(7.0), rtol=1e-8)


@pytest.mark.parametrize(("method", "share"), [("heun", 1.0), ("midpoint", 0.5)])
def test_of_a_step_it_is_the_closed_form(method, share):
    """|A v| / |v| with v the Euler step h A z + g dW, or half of it; per row."""
    matrix, y, noise = torch.randn(3, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.randn(5, 2, 3, dtype=F64)
    found = stepped(Linear(matrix, 0.4), y, 0.09, method, noise).stiffness
    v = share * (0.09 * y @ matrix.T + 0.4 * 0.3 * noise[:, 0])
    assert torch.allclose(found, (v @ matrix.T).norm(dim=1) / v.norm(dim=1), rtol=1e-9)


def test_its_mean_square_is_that_of_the_singular_values():
    """As h -> 0 under like noises, within four standard errors; it never exceeds the largest singular value."""
    matrix = torch.diag(tensor(-20.0, -2.0, -1.0)) + 0.5 * torch.randn(3, 3, dtype=F64)
    found = stepped(Linear(matrix, 1.0), torch.ones(20_000, 3, dtype=F64), 1e-8).stiffness
    squares, want = found.square(), matrix.square().sum() / 3
    assert abs(squares.mean() - want) < 4 * squares.std() / len(squares) ** 0.5
    assert found.max() <= torch.linalg.matrix_norm(matrix, 2) * (1 + 1e-9)


def test_a_drift_that_depends_on_time_adds_little_under_noise():
    """h |df/dt| / |v| with v of size sqrt(h): halved by a quarter of the step."""
    sde, y = Linear(torch.zeros(2, 2, dtype=F64), 1.0, push=3.0), torch.ones(4, 2, dtype=F64)
    noise = torch.randn(4, 2, 2, dtype=F64)
    coarse, fine = (stepped(sde, y, h, noise=noise).stiffness for h in (4e-4, 1e-4))
    assert torch.allclose(coarse, 2 * fine, rtol=1e-6) and coarse.max() < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_is_stable_up_to_the_stability_of_the_method(method):
    """Without noise z grows by a step of more than `stability` / rate, and of no less."""
    stability = AdaptiveStochastic(method).stability
    sde = Linear(tensor(-5.0)[:, None], 0.0, additive=method == "euler")
    ratios = [stepped(sde, tensor(1.0)[:, None], x * stability / 5.0, method).y.abs().item() for x in (0.99, 1.0, 1.01)]
    assert ratios[0] < 1 - 1e-6 and abs(ratios[1] - 1) < 1e-12 and ratios[2] > 1 + 1e-6


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_small_differences(method, batching, adjoint):
    """Of the mean over steps of a whole solve: steps are fractions of two and noise a function of them, both held."""
    sde = Waves("additive" if method == "euler" else "diagonal")
    y0 = torch.linspace(-1, 1, 12, dtype=F64).view(4, 3)

    def value():
        solver = AdaptiveStochastic(method, rtol=2e-2, atol=2e-2, batching=batching, compile="off")
        stats = solve(sde, y0, tensor(0.0, 1.0), solver=solver, adjoint=adjoint, noise=Brownian(3)).stats
        return stats.stiffness.mean(), stats.steps

    mean, mesh = value()
    gradients = torch.autograd.grad(mean, list(sde.parameters()))
    assert gradients[0].abs() > 1e-2
    for parameter, gradient in zip(sde.parameters(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            up, above = value()
            parameter -= 2e-6 * direction
            down, below = value()
            parameter += 1e-6 * direction
        assert torch.equal(above, mesh) and torch.equal(below, mesh)
        want = (up - down) / 2e-6
        assert abs((gradient * direction).sum() - want) < 1e-6 * (1 + abs(want))


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("sde", [Free(2), Linear(torch.zeros(2, 2, dtype=F64), 0.0)], ids=["free", "at rest"])
def test_without_drift_there_is_none_and_no_gradient(sde, start):
    y0 = torch.full((3, 2), start, dtype=F64, requires_grad=True)
    stats = solve(sde, y0, tensor(0.0, 1.0), solver=AdaptiveStochastic(), noise=Brownian(0)).stats
    assert stats.stiffness.max() < 1e-9
    total = stats.stiffness.sum() + 0.0 * y0.sum()  # of a constant drift it is a constant
    for gradient in torch.autograd.grad(total, [y0, *sde.parameters()], allow_unused=True):
        assert gradient is None or (gradient.isfinite().all() and gradient.abs().max() < 1e-9)


def test_at_a_fixed_point_without_noise_gradients_are_finite():
    sde, y0 = Growth("ito"), torch.zeros(3, 1, dtype=F64, requires_grad=True)
    stats = solve(sde, y0, tensor(0.0, 1.0), solver=AdaptiveStochastic(), noise=Brownian(0)).stats
    (gradient,) = torch.autograd.grad(stats.stiffness.sum(), y0)
    assert stats.stiffness.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_of_nothing_it_is_nothing(dtype):
    zero = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    found = quotient(zero, zero, zero, zero)
    (gradient,) = torch.autograd.grad(found.sum(), zero)
    assert found.max() < 1e-15 and not gradient.any()
