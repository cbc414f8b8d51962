"""Free fields: what bounds and switches promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndeflow.fields.cde import CDEField
from ndeflow.fields.concat_squash import ConcatSquash, ConcatSquashField
from ndeflow.fields.ode import MLPField
from ndeflow.fields.sde import DiagonalSDE


def test_an_autonomous_field_does_not_see_time():
    y = torch.randn(5, 3)
    early, late = torch.tensor(0.0), torch.tensor(2.0)
    autonomous, timed = MLPField(3, time=False), MLPField(3)
    assert autonomous(early, y).equal(autonomous(late, y))
    assert not timed(early, y).equal(timed(late, y))


def test_bounded_fields_stay_within_one():
    y = 1e3 * torch.randn(50, 3)
    for rate in (MLPField(3, bounded=True)(torch.tensor(0.0), y), CDEField(3, 2)(torch.tensor(0.0), y)):
        assert rate.abs().max() <= 1


def test_a_cde_field_has_one_column_a_channel():
    assert CDEField(3, 2)(torch.tensor(0.0), torch.randn(5, 3)).shape == (5, 3, 2)


def test_the_diffusion_is_positive_and_below_its_scale():
    sde = DiagonalSDE(3, scale=0.5)
    diffusion = sde.diffusion(torch.tensor(0.0), 10 * torch.randn(500, 3))
    assert (diffusion > 0).all() and (diffusion < 0.5).all()
    assert (sde.noise_type, sde.sde_type, sde.noise_size) == ("diagonal", "ito", 3)
    with pytest.raises(ValueError, match="expected a positive scale"):
        DiagonalSDE(3, scale=0.0)


def test_a_concat_squash_layer_is_its_formula():
    layer, t, x = ConcatSquash(3, 4), torch.tensor(0.7), torch.randn(5, 3)
    gate = torch.sigmoid(0.7 * layer.gate.weight[:, 0] + layer.gate.bias)
    want = (x @ layer.linear.weight.T + layer.linear.bias) * gate + 0.7 * layer.shift.weight[:, 0]
    torch.testing.assert_close(layer(t, x), want)


def test_a_concat_squash_field_has_its_activation_between_layers():
    y, t = torch.randn(5, 2), torch.tensor(0.3)
    field = ConcatSquashField(2, width=6, depth=1, activation=nn.Tanh)
    first, last = field.layers
    torch.testing.assert_close(field(t, y), last(t, torch.tanh(first(t, y))))
    with pytest.raises(ValueError, match="expected positive size and width"):
        ConcatSquashField(2, width=0)
