"""No step whose result is not finite is accepted: integrals, states that overflow, states between steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.derivatives import Evaluation, Integrand
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solution import NON_FINITE, Adjoint, Solution, SolveError, Solver
from ndeflow.numerics.solve import solve
from tests.problems import start

TS = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
RAISING = [
    RungeKutta(method, 1e-2, 1e-2, batching=batching, compile=compile)
    for method, batching, compile in (
        ("dopri5", "shared", "off"),
        ("heun", "shared", "off"),
        ("tsit5", "per_sample", "off"),
        ("heun", "shared", "on"),
        ("heun", "per_sample", "on"),
    )
]


def rate(t: Tensor, spoilt: Tensor) -> Tensor:
    """The rate of an integral: 1, and from the time in the second column of `spoilt` (B, 2) on what the first says."""
    return torch.where(t.flatten() >= spoilt[:, 1], spoilt[:, 0], 1.0)


class Duration(Integrand):
    def forward(self, at: Evaluation, own: Tensor) -> Tensor:
        return rate(at.t, own)


class Decay(nn.Module):
    """dy/dt = -rate y; with a context, an integral of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor, spoilt: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        dy = -self.rate * y
        return dy if spoilt is None else (dy, rate(t, spoilt).unsqueeze(1))


FIELD, DURATION = Decay(), Duration()  # each program is made once


def solved(solver: Solver, adjoint: Adjoint, value: float, since: float, own: bool = False) -> Solution:
    """Three rows, the second of which has an integral that is not finite."""
    spoilt = torch.tensor([[1.0, 0.0], [value, since], [1.0, 0.0]], dtype=torch.float64)
    beside: dict[str, Any] = {"context": spoilt} if own else {"integrands": [(DURATION, spoilt)]}
    return solve(FIELD, start(), TS, solver=solver, adjoint=adjoint, **beside)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        *((solver, adjoint) for solver in RAISING for adjoint in (Direct(), Checkpointed())),
        (FixedRungeKutta("euler", 10), Direct()),
        (FixedRungeKutta("rk4", 10), Checkpointed()),
        (RungeKutta(compile="off"), Reversible()),
        (FixedRungeKutta("midpoint", 10), Reversible()),
    ],
)
def test_an_integral_that_is_not_finite_is_a_failure(solver, adjoint, value, own):
    with pytest.raises(SolveError, match=r"non-finite.*bound the field") as raised:
        solved(solver, adjoint, value, 0.5, own)
    assert "row 1" in str(raised.value) and "time 0." in str(raised.value)
    if isinstance(solver, RungeKutta):
        assert raised.value.status is not None and raised.value.status.tolist() == [0, NON_FINITE, 0]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("solver", RAISING)
def test_one_that_is_not_finite_from_the_start_is_named_there(solver):
    with pytest.raises(SolveError, match=r"an integral or a rate is non-finite at time 0 in row 1, before the first"):
        solved(solver, Direct(), math.nan, 0.0)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_a_masked_row_fails_alone(adjoint, compile):
    solver = RungeKutta("heun", 1e-2, 1e-2, batching="per_sample", on_failure="mask", compile=compile)
    solution = solved(solver, adjoint, math.nan, 0.5)
    assert solution.stats.status.tolist() == [0, NON_FINITE, 0]
    assert solution.ys[1, 2].isnan().all() and solution.integrals[1, 2].isnan().all()
    assert torch.allclose(solution.integrals[[0, 2], :, 0], TS)
    loss = solution.integrals[[0, 2]].sum() + solution.ys[[0, 2]].square().sum()
    (grad,) = torch.autograd.grad(loss, FIELD.rate)
    assert grad.isfinite() and grad != 0


@pytest.mark.parametrize("batching", ["shared", "per_sample"])
def test_a_state_that_overflows_with_a_finite_rate_is_a_failure(batching):
    """The tolerance of an infinite state is infinite: any error is small beside it."""
    solver = RungeKutta(batching=batching, compile="off", max_steps=200)
    y0, ts = torch.full((2, 1), 3e38), torch.tensor([0.0, 1.0])
    with pytest.raises(SolveError, match=r"at time 0\.80.*non-finite"):
        solve(lambda t, y: torch.full_like(y, 5e37), y0, ts, solver=solver)


@pytest.mark.parametrize("solver", [RungeKutta("heun", compile="off"), FixedRungeKutta("rk4", 4)])
def test_a_rate_that_is_not_finite_at_the_end_spoils_no_state_before_it(solver):
    """States inside the last step are read with the rate at its end."""
    problem = Problem(lambda t, y: torch.where(t >= 1, torch.nan, -y), start(), TS[[0, 2]])
    with pytest.raises(SolveError, match="non-finite"):
        solver.integrate(problem.with_probes(torch.tensor([0.9], dtype=torch.float64)))
