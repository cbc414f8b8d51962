"""Free fields: what bounds and switches promise."""

from __future__ import annotations

import pytest
import torch

from ndeflow.fields.cde import CDEField
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
