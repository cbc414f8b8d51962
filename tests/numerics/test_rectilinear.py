"""The rectilinear path: its corners, the solutions of linear equations along it, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import Controlled
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.observations import augment
from ndeflow.numerics.rectilinear import Rectilinear
from ndeflow.numerics.solve import solve

ROWS, TIMES, CHANNELS = 3, 5, 2


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def observations(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Irregular times (B, T), of which the second row ends with two that are padding, and values (B, T, C)."""
    torch.manual_seed(0)
    ts = torch.rand(rows, TIMES, dtype=torch.float64).add(0.1).cumsum(dim=1)
    xs = 0.5 * torch.randn(rows, TIMES, CHANNELS, dtype=torch.float64)
    if rows > 1:
        ts[1, 3:] = ts[1, 2]
    return ts, xs


def mask_of(ts: Tensor, xs: Tensor) -> Tensor:
    """Everything but padding."""
    first = torch.ones_like(ts[:, :1], dtype=torch.bool)
    return torch.cat([first, ts.diff(dim=1) > 0], dim=1).unsqueeze(-1).expand_as(xs)


def through(ts: Tensor, xs: Tensor, mask: Tensor | None = None) -> Rectilinear:
    return Rectilinear.through(ts, *augment(ts, xs, mask_of(ts, xs) if mask is None else mask))


def test_time_advances_and_then_values_jump():
    nan = torch.nan
    ts, xs = tensor(0.0, 2.0, 3.0), torch.stack([tensor(nan, 5.0, nan), tensor(1.0, nan, 4.0)], dim=-1)[None]
    path = Rectilinear.through(ts, *augment(ts, xs, ~xs.isnan()))
    corners = torch.stack([path.value(s)[0] for s in path.knots])
    expected = [[0, 0, 1], [2, 0, 1], [2, 5, 1], [3, 5, 1], [3, 5, 4]]
    torch.testing.assert_close(corners, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(path.knots, tensor(0.0, 0.5, 1.0, 1.5, 2.0))
    torch.testing.assert_close(path.at_observations(), tensor(0.0, 1.0, 2.0))
    torch.testing.assert_close(path.derivative(tensor(0.25)[0]), tensor(4.0, 0.0, 0.0)[None])
    torch.testing.assert_close(path.derivative(tensor(1.9)[0]), tensor(0.0, 0.0, 6.0)[None])


def test_padding_has_length_zero():
    ts, xs = observations()
    path = through(ts, xs)
    torch.testing.assert_close(path.at_observations()[1], tensor(0.0, 1.0, 2.0, 2.0, 2.0))
    assert path.knots[0].equal(torch.arange(9, dtype=torch.float64) / 2)
    for k in range(4, 8):
        still = path.piece(k)
        torch.testing.assert_close(still.value(path.knots[:, k : k + 1])[1], torch.cat([ts[1, 2:3], xs[1, 2]]))
        assert not still.derivative(path.knots[:, k : k + 1])[1].any()


class Product(nn.Module):
    """z -> (A_0 z, A_1 z, ...): dz = sum_c A_c z dX_c."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.matrices = nn.Parameter(torch.randn(1 + CHANNELS, 2, 2, dtype=torch.float64))

    def forward(self, t, z):
        return torch.einsum("cij,bj->bic", self.matrices, z)


@pytest.mark.parametrize("solver", [FixedRungeKutta("rk4", 40), RungeKutta("dopri5", 1e-10, 1e-10)])
def test_linear_equations_are_products_of_exponentials(solver):
    """The matrices do not commute: the order of time and values is what the path says."""
    (ts, xs), field = observations(), Product()
    path, z0 = through(ts, xs), torch.ones(ROWS, 2, dtype=torch.float64)
    zs = solve(Controlled(field), z0, path.at_observations(), solver=solver, context=path).ys
    held = torch.where(mask_of(ts, xs), xs, xs[:, 2:3])
    z = z0
    for i in range(TIMES - 1):
        advance = torch.einsum("b,ij->bij", ts[:, i + 1] - ts[:, i], field.matrices[0])
        jump = torch.einsum("bc,cij->bij", held[:, i + 1] - held[:, i], field.matrices[1:])
        z = (torch.matrix_exp(jump) @ torch.matrix_exp(advance) @ z.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(zs[:, i + 1], z, rtol=1e-6, atol=1e-8)


def test_shared_times_are_the_same_as_one_copy_a_row():
    ts, xs = observations(1)
    xs = xs.expand(ROWS, -1, -1)
    shared, own = through(ts.expand(ROWS, -1), xs), Rectilinear.through(ts[0], *augment(ts[0], xs, ~xs.isnan()))
    assert own.knots.dim() == 1 and torch.equal(own.knots.expand(ROWS, -1), shared.knots)
    assert all(map(torch.equal, own.coefficients, shared.coefficients))


def test_gradients_of_times_and_values_are_exact():
    ts, xs = observations(2)
    mask = mask_of(ts, xs) & (torch.rand(xs.shape) < 0.7)

    def read(ts: Tensor, xs: Tensor) -> Tensor:
        path = through(ts, xs, mask)
        return torch.cat([path.value(tensor(0.7)[0]), path.piece(2).derivative(tensor(1.2)[0])])

    moving = ts[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t, x: read(torch.cat([t, ts[1:]]), x), (moving, xs.requires_grad_()))


@pytest.mark.parametrize("solver", [FixedRungeKutta(), RungeKutta()])
@pytest.mark.parametrize("saved", [[0.0, 0.7], [0.0, 5.0], [-1.0, 2.0], [0.0, 0.25]])
def test_save_times_that_are_not_the_paths_are_refused(solver, saved):
    ts, xs = observations()
    with pytest.raises(ValueError, match=r"give ts=path\.at_observations\(\)"):
        solve(Controlled(Product()), xs[:, 0], tensor(*saved), solver=solver, context=through(ts, xs))


@pytest.mark.parametrize(
    "change", [lambda xs: xs[..., 1:], lambda xs: xs * 2, lambda xs: xs.masked_fill(xs == xs[:1, 1:2], torch.nan)]
)
def test_a_path_without_time_is_refused(change):
    ts, xs = observations()
    with pytest.raises(ValueError, match=r"expected time as the first channel .*\*augment\(ts, xs, mask\)"):
        Rectilinear.through(ts, change(augment(ts, xs, mask_of(ts, xs))[0]))
