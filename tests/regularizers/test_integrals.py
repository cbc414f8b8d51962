"""Integrals along the solution: their formulas, their gradients, no influence on the steps, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solve import solve
from ndeflow.regularizers import JacobianFrobenius, Kinetic, TaylorDerivative
from tests.numerics.sdes import Waves
from tests.regularizers.fields import Linear, Net, assert_small_differences, prepared

F64 = torch.float64
TIGHT = RungeKutta(rtol=1e-9, atol=1e-9, compile="off")
TS = torch.tensor([0.0, 0.4, 1.2], dtype=F64)
ALL = [Kinetic(), JacobianFrobenius(), TaylorDerivative(), TaylorDerivative(order=3)]
NAMES = ["kinetic", "jacobian", "taylor2", "taylor3"]


@pytest.mark.parametrize(
    ("regularizer", "power"), [(Kinetic(), 1), (TaylorDerivative(), 2), (TaylorDerivative(order=3), 3)]
)
def test_of_exponential_growth_the_derivatives_are_known(regularizer, power):
    """y = y0 e^(a t): int (a^k y)^2 dt = a^(2k - 1) y0^2 (e^(2 a T) - 1) / 2."""
    a, y0 = -0.7, torch.tensor([[1.0], [2.0]], dtype=F64)
    got, _ = prepared(regularizer, Linear(torch.tensor([[a]], dtype=F64)), y0, TS, solver=TIGHT)
    want = a ** (2 * power - 1) * (math.exp(2 * a * 1.2) - 1) / 2 * y0.square().mean()
    assert torch.allclose(got, want * (0.5 if power == 1 else 1.0), rtol=1e-6)


def test_derivatives_in_time_count():
    """dy/dt = t: the second derivative is 1 and the third 0."""
    y0 = torch.zeros(1, 1, dtype=F64)

    class Time(torch.nn.Module):
        def forward(self, t, y):
            return t + 0 * y

    for order, want in ((2, 1.2), (3, 0.0)):
        got, _ = prepared(TaylorDerivative(order=order), Time(), y0, TS, solver=TIGHT)
        assert abs(got.item() - want) < 1e-9


def test_the_jacobians_norm_is_met_on_average():
    """Of dy/dt = A y it is |A|_F^2 T / d; the mean over many rows, each with its own e, within four standard errors."""
    torch.manual_seed(0)
    matrix, rows = torch.tensor([[0.5, -1.0], [0.3, -0.2]], dtype=F64), 20_000
    field, y0 = Linear(matrix), torch.ones(rows, 2, dtype=F64)
    solver = RungeKutta("heun", rtol=1e-1, atol=1e-1, compile="off")
    with torch.no_grad():
        got, _ = prepared(JacobianFrobenius(), field, y0, TS, solver=solver)
    deviation = (2 * (matrix @ matrix.T).square().sum()).sqrt() / rows**0.5
    assert abs(got / 0.6 - matrix.square().sum()) < 4 * deviation


@pytest.mark.parametrize("regularizer", ALL, ids=NAMES)
def test_a_penalty_does_not_steer_the_steps(regularizer):
    field, y0 = Net(), torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    plain = solve(field, y0, TS, solver=RungeKutta(compile="off"))
    _, solution = prepared(regularizer, field, y0, TS)
    assert torch.allclose(solution.stats.steps, plain.stats.steps, rtol=1e-12)
    assert torch.equal(solution.stats.nfe, plain.stats.nfe)
    assert torch.allclose(solution.ys, plain.ys, rtol=1e-13)


@pytest.mark.parametrize("regularizer", ALL, ids=NAMES)
def test_gradients_are_those_of_small_differences(regularizer):
    field, y0 = Net(), torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    solver = RungeKutta(rtol=1e-7, atol=1e-7, compile="off")

    def value():
        torch.manual_seed(3)  # the same e
        return prepared(regularizer, field, y0, TS[[0, 1]], solver=solver)[0]

    assert_small_differences(value, list(field.parameters()), 1e-5)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Backsolve(), Reversible()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("regularizer", ALL, ids=NAMES)
def test_adjoints_agree(regularizer, adjoint):
    field, y0 = Net(), torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = []
    for each in (Direct(), adjoint):
        torch.manual_seed(3)
        value, _ = prepared(regularizer, field, y0, TS, solver=TIGHT, adjoint=each)
        gradients = torch.autograd.grad(value, field.net[0].weight)
        found.append([value.detach(), *gradients])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("regularizer", ALL[1:3], ids=NAMES[1:3])
@pytest.mark.usefixtures("traced")
def test_compiled_solves_have_the_same_penalties(regularizer):
    field, y0 = Net(), torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = []
    for compile in ("off", "on"):
        torch.manual_seed(3)
        value, _ = prepared(regularizer, field, y0, TS, solver=RungeKutta("heun", 1e-2, 1e-2, compile=compile))
        found.append(torch.autograd.grad(value, field.net[0].weight)[0])
    assert torch.allclose(*found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("regularizer", ALL, ids=NAMES)
def test_an_sde_is_refused_with_the_cure(regularizer):
    with pytest.raises(ValueError, match=r"expected an ODE or a CDE .* use GlobalError"):
        prepared(regularizer, Waves(), torch.ones(2, 3, dtype=F64), TS, noise=Brownian(0))


def test_orders_beyond_three_are_refused():
    with pytest.raises(ValueError, match="expected order 2 or 3, got 4"):
        TaylorDerivative(order=4)
