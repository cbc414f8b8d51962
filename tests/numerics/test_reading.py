import pytest
import torch
from torch import nn

from ndeflow import Checkpointed, Direct, Reversible, RungeKutta, solve
from ndeflow.numerics.paths import Linear
from ndeflow.numerics.reading import quartic


def test_the_quartic_through_a_step_is_every_polynomial_of_degree_four() -> None:
    coefficients = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    t0, h = 0.3, 0.7

    def value(t: torch.Tensor) -> torch.Tensor:
        return sum((c * t**i for i, c in enumerate(coefficients)), start=torch.zeros_like(t))

    def slope(t: torch.Tensor) -> torch.Tensor:
        return sum((i * c * t ** (i - 1) for i, c in enumerate(coefficients) if i), start=torch.zeros_like(t))

    start, mid, end = torch.tensor([t0, t0 + h / 2, t0 + h], dtype=torch.float64)
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    parts = [value(start), slope(start), value(mid), value(end), slope(end)]
    found = sum(w * x for w, x in zip(quartic(s, torch.full_like(s, h)), parts, strict=True))
    assert torch.allclose(found, value(t0 + s * h), rtol=0, atol=1e-14)
    assert found[0] == value(start) and found[-1] == value(end)


@pytest.mark.parametrize("driven", [False, True], ids=["free", "path"])
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Reversible()], ids=["direct", "checkpointed", "back"])
def test_times_that_rows_share_are_read_as_times_of_their_own(adjoint, driven):
    """Also across knots, where the slope with which a step ends is not the one with which the next begins."""
    knots = torch.tensor([0.0, 0.4, 1.0, 1.7, 2.0], dtype=torch.float64)
    ts = torch.cat([torch.linspace(0, 2, 23, dtype=torch.float64), knots[2:3]]).sort().values
    field, found = Pulled(), []
    for times in (ts, ts.expand(3, -1)):
        y0, x = (torch.linspace(-1, 1, n, dtype=torch.float64).sin().requires_grad_() for n in (6, 30))
        path = Linear.through(knots, x.view(3, 5, 2)) if driven else None
        ys = solve(field, y0.view(3, 2), times, solver=RungeKutta(rtol=1e-4), adjoint=adjoint, context=path).ys
        inputs = [y0, *field.parameters(), *([x] if driven else [])]
        found.append([ys, *torch.autograd.grad(ys.sin().sum(), inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Pulled(nn.Module):
    """dy/dt = tanh(a y), plus the slope of a path where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.5, -1.0], [1.0, 0.2]], dtype=torch.float64))

    def forward(self, t, y, path=None):
        pull = 0.0 if path is None else path.derivative(t)
        return torch.tanh(y @ self.a) + pull
