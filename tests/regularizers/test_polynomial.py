"""The distance from a polynomial is 0 for one, is the least-squares residual, and needs states alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.regularizers import TrajectoryPolynomial
from tests.numerics.sdes import Waves
from tests.regularizers.fields import Net, prepared

F64 = torch.float64
TS = torch.tensor([0.0, 0.4, 1.2], dtype=F64)
TIGHT = RungeKutta(rtol=1e-9, atol=1e-9, compile="off")


class Ramp(nn.Module):
    """y = y0 + a t^(k + 1) / (k + 1): a polynomial of degree k + 1."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power, self.rate = power, nn.Parameter(torch.tensor(1.3, dtype=F64))

    def forward(self, t, y):
        return self.rate * t**self.power + 0 * y


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_of_its_degree_cost_nothing(degree):
    torch.manual_seed(0)
    y0, regularizer = torch.randn(3, 2, dtype=F64), TrajectoryPolynomial(degree=degree, points=degree + 2)
    assert prepared(regularizer, Ramp(degree - 1), y0, TS, solver=TIGHT)[0].item() < 1e-20
    assert prepared(regularizer, Ramp(degree), y0, TS, solver=TIGHT)[0].item() > 1e-8


@pytest.mark.parametrize("own", [False, True])
def test_it_is_the_residual_of_a_least_squares_fit(own):
    torch.manual_seed(0)
    y0, degree = torch.randn(3, 2, dtype=F64), 2
    ts = torch.stack([TS, TS + 0.1, 0.5 * TS]) if own else TS
    value, solution = prepared(TrajectoryPolynomial(degree=degree, points=4), Net(), y0, ts, solver=TIGHT)
    places, total = [0, 3, 4, 5, 6, 2], 0.0
    for row in range(3):
        t = (solution.ts[row] if own else solution.ts)[places].numpy()
        z = solution.ys[row, places].detach().numpy()
        total += sum(np.polynomial.polynomial.polyfit(t, z, degree, full=True)[1][0])
    assert abs(value.item() - total / 3 / 6) < 1e-9


def test_gradients_are_the_same_under_any_adjoint():
    y0, found = torch.ones(3, 2, dtype=F64), []
    for adjoint in (Direct(), Checkpointed(), Backsolve()):
        torch.manual_seed(2)
        field = Net()
        prepared(TrajectoryPolynomial(), field, y0, TS, solver=TIGHT, adjoint=adjoint)[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    assert found[0].norm() > 1e-6
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-4, atol=1e-8)


def test_settings_and_sdes_are_refused_with_the_cure():
    with pytest.raises(ValueError, match="expected degree >= 1 and points >= degree, got degree 3, points 2"):
        TrajectoryPolynomial(degree=3)
    with pytest.raises(ValueError, match="expected an ODE or a CDE"):
        prepared(TrajectoryPolynomial(), Waves(), torch.ones(2, 3, dtype=F64), TS, noise=Brownian(0))
