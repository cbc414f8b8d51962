"""The local penalty as published: what it is, and that its gradient is not that of the error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ndeflow.contracts import Problem
from ndeflow.models import ODEForecaster
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.tableaus import PAIRS
from ndeflow.regularizers import ReleasedLocalError
from tests.regularizers.fields import Net, prepared

F64 = torch.float64
TS = torch.tensor([0.0, 2.0], dtype=F64)
SOLVER = RungeKutta("tsit5", rtol=1e-8, atol=1e-8, compile="off")


def flat(value: torch.Tensor, field: Net) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(field.parameters()))])


def test_it_is_one_step_of_the_starting_size_whose_first_stage_has_no_gradient(drawn: Callable[[float], None]) -> None:
    """Its gradient is mostly that of -h b1 k1, which the error does not have."""
    drawn(0.4)
    field, y0 = Net(), torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    value, solution = prepared(ReleasedLocalError(), field, y0, TS, solver=SOLVER)
    t, y = torch.tensor(0.8, dtype=F64), solution.ys[:, 2].detach()
    probe = SOLVER.integrate(Problem(field, y, torch.stack([t, TS[1]])))
    h = probe.stats.steps[0, 0]
    assert float(h) < 0.5 * float(solution.stats.steps.max())

    def estimate(k1: torch.Tensor) -> torch.Tensor:
        ratio = SOLVER.step(solution.problem, t, y, h, carry=k1).ratio
        assert ratio is not None
        return h * ratio.square().mean().sqrt()

    k1 = field(t, y)
    assert torch.allclose(value, estimate(k1), rtol=1e-9)
    got, true = flat(value, field), flat(estimate(k1), field)
    assert torch.allclose(got, flat(estimate(k1.detach()), field), rtol=1e-6)
    assert got.norm() > 20 * true.norm()
    b1 = PAIRS["tsit5"].error[0]  # pyright: ignore[reportOptionalSubscript]
    scale = SOLVER.atol + SOLVER.rtol * y.abs()
    step = SOLVER.step(solution.problem, t, y, h)
    assert step.error is not None
    weight = (step.error / scale).detach() / scale / (step.error / scale).square().mean().sqrt().detach() / y.numel()
    spurious = flat(-h * h * b1 * (weight * field(t, y)).sum(), field)
    assert torch.cosine_similarity(got - true, spurious, dim=0) > 0.99


def test_other_solvers_are_refused() -> None:
    model = ODEForecaster(2, solver=FixedRungeKutta("rk4"))
    with pytest.raises(ValueError, match="expected RungeKutta for ReleasedLocalError"):
        ReleasedLocalError().check(model)
