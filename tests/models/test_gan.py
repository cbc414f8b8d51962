"""Generator and critic of paths."""

from __future__ import annotations

import pytest
import torch

from ndeflow.contracts import Batch
from ndeflow.models import CDECritic, SDEGenerator
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.stochastic import Stochastic
from tests.models.series import take


def paths(rows: int = 5, length: int = 6, channels: int = 2) -> Batch:
    """Random walks at times of their own, of which a model reads the first value."""
    torch.manual_seed(3)
    ts = torch.rand(rows, length, dtype=torch.float64).sort(dim=1).values
    ys = torch.randn(rows, length, channels, dtype=torch.float64).cumsum(dim=1)
    mask = torch.ones_like(ys, dtype=torch.bool)
    return Batch(ts, ys, mask, mask & (torch.arange(length)[:, None] == 0), None, None, torch.arange(rows))


def test_generated_paths_start_where_the_row_does_and_differ():
    batch, model = paths(), SDEGenerator(2).double()
    fake = model(batch).prediction
    assert torch.equal(fake[:, 0], batch.ys[:, 0]) and fake.shape == batch.ys.shape
    steps = (fake - fake[:, :1])[:, -1]
    assert torch.cdist(steps, steps).add(torch.eye(5)).min() > 1e-3


def test_a_path_is_a_function_of_seed_and_index():
    batch, model = paths(), SDEGenerator(2).double()
    model.reseed(7)
    whole = model(batch).prediction
    model.reseed(7)
    torch.testing.assert_close(model(take(batch, [3])).prediction[0], whole[3])
    model.reseed(8)
    assert not torch.allclose(model(batch).prediction, whole)


def test_the_diffusion_is_stratonovich_of_general_noise():
    model = SDEGenerator(1, hidden=4, noise_size=3, volatility=0.0)
    assert model.dynamics.noise_type == "general" and model.dynamics.sde_type == "stratonovich"
    assert model.diffusion(torch.tensor(0.0), torch.randn(5, 4)).abs().max() == 0
    with pytest.raises(ValueError, match="expected an SDE in the sense of ito"):
        SDEGenerator(1, solver=Stochastic("euler")).double()(paths(channels=1))


def test_scores_are_differentiable_in_the_path():
    batch, critic = paths(), CDECritic(2).double()
    read = batch._replace(seen=batch.mask)

    def scores(ys):
        return critic(read._replace(ys=ys)).prediction

    assert scores(batch.ys).shape == (5,)
    assert torch.autograd.gradcheck(scores, batch.ys.clone().requires_grad_(), fast_mode=True)


def test_the_critic_is_the_controlled_equation():
    batch, critic = paths(), CDECritic(2, solver=FixedRungeKutta("euler")).double()
    xs = torch.cat([batch.ts.unsqueeze(-1), batch.ys], dim=-1)
    h = critic.initial(xs[:, 0])
    for step in xs.diff(dim=1).unbind(dim=1):
        h = h + (critic.flow.field(torch.tensor(0.0), h) @ step.unsqueeze(-1)).squeeze(-1)
    found = critic(batch._replace(seen=batch.mask)).prediction
    torch.testing.assert_close(found, critic.readout(h).squeeze(-1))
