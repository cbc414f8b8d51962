"""What a field is, and how it sees its context."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE, ByValue, Controlled, leaves, path_of, replace_leaves, with_piece
from ndeflow.numerics.paths import ControlPath, Hermite, Linear
from ndeflow.numerics.solve import solve

ROWS, CHANNELS, SIZE = 3, 2, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Conditions(NamedTuple):
    scale: Tensor
    path: ControlPath
    extra: Tensor | None = None


class Noisy(SDE):
    def drift(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        return y * context[0].sum(dim=-1, keepdim=True) + t

    def diffusion(self, t: Tensor, y: Tensor, *context: Any) -> Tensor:
        assert not context
        return 1 + y.square()


class Reader(nn.Module):
    def forward(self, t: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return y + x.sum(dim=-1).view(-1, *[1] * (y.dim() - 1))


class Response(nn.Module):
    """Each state element responds with y to every channel but the first, to which it responds with 2."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.full_like(y, 2.0), *[y] * (CHANNELS - 1)], dim=-1)


def some_path(kind=Hermite) -> ControlPath:
    return kind.through(torch.rand(ROWS, 6).cumsum(dim=1), torch.randn(ROWS, 6, CHANNELS))


def diagonal() -> Noisy:
    return Noisy(noise_type="diagonal", sde_type="ito", noise_size=SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_type": "none"}, "expected noise_type"),
        ({"sde_type": "levy"}, "expected sde_type"),
        ({"noise_size": 0}, "positive noise_size"),
        ({"noise_type": "scalar", "noise_size": 2}, "1 for scalar noise"),
    ],
)
def test_an_impossible_sde_is_refused_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        Noisy(**{"noise_type": "diagonal", "sde_type": "ito", "noise_size": 1, **settings})


@pytest.mark.parametrize("state", [(SIZE,), (2, 3)])
def test_a_controlled_field_is_its_response_times_the_paths_slope(state):
    path, y = some_path(), torch.randn(ROWS, *state)
    t = path.knots[:, 2].view(-1, *[1] * len(state)) + 0.01
    slope = path.derivative(t)
    first, second = (slope[:, c].view(-1, *[1] * len(state)) for c in range(CHANNELS))
    expected = 2 * first + y * second
    torch.testing.assert_close(Controlled(Response())(t, y, path), expected)
    torch.testing.assert_close(Controlled(Response())(t, y, Conditions(y, path)), expected)


@pytest.mark.parametrize("state", [(SIZE,), (2, 3)])
def test_a_field_sees_the_paths_value(state):
    path, y = some_path(), torch.randn(ROWS, *state)
    expected = Reader()(torch.tensor(0.3), y, path.value(torch.tensor(0.3)))
    torch.testing.assert_close(ByValue(Reader())(torch.tensor(0.3), y, path), expected)


def test_of_an_sde_the_drift_alone_sees_the_path():
    sde, path, y, t = ByValue(diagonal()), some_path(), torch.randn(ROWS, SIZE), torch.tensor(0.3)
    assert isinstance(sde, SDE) and (sde.noise_type, sde.sde_type, sde.noise_size) == ("diagonal", "ito", SIZE)
    torch.testing.assert_close(sde.drift(t, y, path), diagonal().drift(t, y, path.value(t)))
    torch.testing.assert_close(sde.diffusion(t, y, path), 1 + y.square())


def test_wrapped_fields_can_be_copied_and_own_their_parameters():
    for field in (ByValue(nn.Bilinear(1, 1, 1)), Controlled(nn.Linear(1, 1))):
        copied = copy.deepcopy(field)
        assert [p.shape for p in copied.parameters()] == [p.shape for p in field.parameters()]
    assert isinstance(copy.deepcopy(ByValue(diagonal())), SDE)


def test_without_a_path_a_driven_field_says_what_to_give():
    y = torch.zeros(ROWS, SIZE)
    for field in (Controlled(Response()), ByValue(Reader())):
        for context in (y, None):
            with pytest.raises(ValueError, match=r"give solve\(..., context=path\)"):
                field(torch.tensor(0.0), y, context)
        with pytest.raises(ValueError, match="expected a control path"):
            field(torch.tensor(0.0), y)


def test_a_piece_replaces_the_path_and_nothing_else():
    path, scale = some_path(), torch.randn(ROWS, 1)
    context = Conditions(scale, path)
    assert path_of(path) is path and path_of(context) is path and path_of(scale) is None and path_of(None) is None
    cut = with_piece(context, 2)
    assert cut.scale is scale and cut.path.knots.equal(path.knots[:, 2:4])
    assert with_piece(path, 2).knots.equal(cut.path.knots)
    assert with_piece(scale, 2) is scale and with_piece(None, 2) is None


@pytest.mark.parametrize("kind", [Linear, Hermite])
def test_leaves_are_replaced_in_their_own_order(kind):
    context = Conditions(torch.randn(ROWS, 1), some_path(kind), None)
    found = leaves(context)
    assert found[0] is context.scale and found[1].equal(context.path.knots)
    doubled = replace_leaves(context, [2 * leaf for leaf in found])
    assert doubled.extra is None and type(doubled) is Conditions and type(doubled.path) is kind
    for new, old in zip(leaves(doubled), found, strict=True):
        assert new.equal(2 * old)
    assert leaves(None) == [] and replace_leaves(None, []) is None


def test_gradients_reach_every_leaf_of_a_path():
    path, y, t = some_path(), torch.randn(ROWS, SIZE), torch.tensor(1.0)
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves(path)]
    rebuilt = replace_leaves(path, fresh)
    dy = ByValue(Reader())(t, y, rebuilt)
    gradients = torch.autograd.grad(dy.sum(), fresh)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("context", [{"path": None}, (torch.zeros(1), None), [torch.zeros(1)], 1.0])
def test_what_is_no_context_is_refused(context):
    with pytest.raises(ValueError, match="expected a context made of tensors"):
        leaves(context)


class Growth(nn.Module):
    """dy = y (a dX), whose solution is y0 exp(a (X - X0)) along any path."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y.unsqueeze(-1) * self.a


@pytest.mark.parametrize("kind", [Linear, Hermite])
def test_a_controlled_solve_depends_on_the_path_alone(kind):
    ts = torch.rand(ROWS, 6, dtype=torch.float64).add(0.1).cumsum(dim=1)
    xs = torch.randn(ROWS, 6, CHANNELS, dtype=torch.float64, requires_grad=True)
    field, y0 = Controlled(Growth()), torch.ones(ROWS, 1, dtype=torch.float64)
    times = torch.cat([ts, ts[:, -1:]], dim=1)  # the last one is padding
    path = kind.through(times, torch.cat([xs, xs[:, -1:]], dim=1))
    ys = solve(field, y0, times, solver=RungeKutta(rtol=1e-8, atol=1e-8), context=path).ys
    exact = (field.field.a * (xs - xs[:, :1])).sum(dim=-1, keepdim=True).exp()
    torch.testing.assert_close(ys, torch.cat([exact, exact[:, -1:]], dim=1), rtol=1e-6, atol=1e-6)
    inputs = [xs, field.field.a]
    ours = torch.autograd.grad(ys[:, :-1].square().sum(), inputs)
    for a, b in zip(ours, torch.autograd.grad(exact.square().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
