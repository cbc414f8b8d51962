"""Slopes at the knots of a control path: kept where the right-hand side is continuous, evaluated where it may jump."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.derivatives import Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import ByValue, Controlled, required_path
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.paths import Hermite, Linear
from ndeflow.numerics.rectilinear import Rectilinear
from ndeflow.numerics.solve import solve
from ndeflow.numerics.splines import NaturalCubic
from tests.problems import apart

KNOTS = torch.tensor([0.0, 0.5, 1.5, 2.0, 3.0], dtype=torch.float64)
GAP = torch.tensor([0.0, 0.5, 0.5, 2.0, 3.0], dtype=torch.float64)
LATE = torch.tensor([[0.5, 0.5, 1.5, 2.0, 3.0]], dtype=torch.float64)
XS = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TWO = KNOTS.expand(2, -1)


class Matrix(nn.Module):
    """tanh(A y + b) as a matrix (B, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.lin = nn.Linear(2, 4).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.lin(y).tanh().unflatten(-1, (2, 2))


class Value(nn.Module):
    """x - y."""

    def forward(self, t: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return x - y


class Whole(nn.Module):
    """It may read of its path what it likes."""

    def forward(self, t: Tensor, y: Tensor, context) -> Tensor:
        return required_path(context).derivative(t)


class Kinetic(Integrand):
    """|dy/dt|^2; an integrand may read of a path what it likes, too."""

    def forward(self, at, own):
        return at.dy.square().sum(dim=1)


def renewals(field, path, batching, integrands=()) -> int:
    """Evaluations of the first row, which moves in all segments, beside two at the start and three a step."""
    ts, y0 = path.knots[..., [0, -1]], torch.ones(2, 2, dtype=torch.float64)
    solver = RungeKutta("bosh3", batching=batching)
    stats = solve(field, y0, ts, context=path, integrands=integrands, solver=solver).stats
    return int(stats.nfe[0] - 2 - 3 * (stats.accepted[0] + stats.rejected[0]))


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
@pytest.mark.parametrize(
    ("field", "path", "expected"),
    [
        (Controlled(Matrix()), Linear.through(KNOTS, XS), 3),
        (Controlled(Matrix()), Hermite.through(KNOTS, XS), 0),
        (Controlled(Matrix()), NaturalCubic.through(KNOTS, XS), 0),
        (Controlled(Matrix()), Hermite.through(GAP, XS), 1),
        (Controlled(Matrix()), Hermite.through(torch.stack([KNOTS, GAP]), XS), 1),
        (Controlled(Matrix()), Hermite.through(torch.cat([KNOTS[None], LATE]), XS), 1),
        (Controlled(Matrix()), Hermite.through(torch.stack([KNOTS, KNOTS.clamp(max=1.5)]), XS), 0),
        (ByValue(Value()), Linear.through(KNOTS, XS), 0),
        (ByValue(Value()), Rectilinear.through(KNOTS, torch.stack([TWO, XS[..., 0]], dim=-1)), 0),
        (ByValue(Value()), Hermite.through(GAP, XS), 1),
        (Whole(), Hermite.through(KNOTS, XS), 3),
    ],
)
def test_a_slope_is_evaluated_where_it_may_jump(field, path, expected, batching):
    assert renewals(field, path, batching) == expected
    assert renewals(field, path, batching, integrands=((Kinetic(), None),)) >= 1


def gradients(field, knots, backward, solver, adjoint) -> list[Tensor]:
    """The state at the end, and its gradients for start, observations and parameters."""
    y0, xs = torch.ones(2, 2, dtype=torch.float64).requires_grad_(), XS.clone().requires_grad_()
    ts = knots[..., [-1, 0] if backward else [0, -1]]
    end = solve(field, y0, ts, context=Hermite.through(knots, xs), solver=solver, adjoint=adjoint).ys[:, -1]
    return [end.detach(), *torch.autograd.grad(end.square().sum(), [y0, xs, *field.parameters()])]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("knots", "backward", "adjoint", "how"),
    [
        (KNOTS, False, Direct(), {"compile": "off"}),
        (KNOTS, True, Checkpointed(), {"compile": "off", "batching": "per_sample"}),
        (torch.stack([KNOTS, GAP]), False, Checkpointed(), {"compile": "off"}),
        (torch.stack([KNOTS, GAP]), False, Direct(), {"compile": "on"}),
    ],
)
def test_solutions_and_gradients_across_knots(knots, backward, adjoint, how):
    """Against many short steps of a method that evaluates at every knot."""
    field, solver = Controlled(Matrix()), RungeKutta("bosh3", 1e-6, 1e-6, **how)
    expected = gradients(field, knots, backward, FixedRungeKutta("rk4", 50, compile="off"), Direct())
    for a, b in zip(gradients(field, knots, backward, solver, adjoint), expected, strict=True):
        assert apart(a, b) < 1e-4
