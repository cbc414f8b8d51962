"""What constrained weights promise: how much a network can stretch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.fields.cde import CDEField
from ndeflow.nets.lipschitz import Clipping, SpectralNorm
from ndeflow.nets.lipswish import LipSwish


def wild() -> nn.Module:
    """A field of a critic with weights that are far too large."""
    torch.manual_seed(0)
    field = CDEField(4, 3, width=8, depth=2, activation=LipSwish).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter *= 50
    return field


def steepest(field: nn.Module, order: float) -> float:
    """The largest norm of the field's Jacobian over many states, from l_order to l_order."""
    states = torch.randn(200, 4, dtype=torch.float64, requires_grad=True)
    outputs = field.net(states).sum(dim=0)
    rows = [torch.autograd.grad(output, states, retain_graph=True)[0] for output in outputs]
    return float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), ord=order).max())


def test_lipswish_has_slope_at_most_one():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LipSwish()(x).sum(), x)
    assert 0.99 < slope.max() <= 1


@pytest.mark.parametrize(("constraint", "order"), [(Clipping(), 1), (SpectralNorm(), 2)])
def test_a_constrained_critic_has_lipschitz_constant_one(constraint, order):
    field = wild()
    assert steepest(field, order) > 1
    constraint.project(field)
    assert 0 < steepest(field, order) <= 1


def test_clipping_changes_weights_alone_and_only_what_is_outside():
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-9.0, 0.1, 0.25]]).expand(4, 3))
        layer.bias.fill_(7.0)
    Clipping().project(layer)
    assert layer.weight[0].tolist() == [-0.25, pytest.approx(0.1), 0.25] and (layer.bias == 7).all()


def test_a_spectral_norm_below_its_bound_is_left_alone():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.2, 0.0]]))
    before = layer.weight.clone()
    SpectralNorm(0.5).project(layer)
    assert torch.equal(layer.weight, before)
    SpectralNorm(0.25).project(layer)
    torch.testing.assert_close(layer.weight.detach(), before / 2)
    with pytest.raises(ValueError, match="expected a positive bound"):
        SpectralNorm(0.0)
