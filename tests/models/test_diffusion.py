"""A scalar diffusion's normal law given its first seen value."""

from __future__ import annotations

import math

import pytest
import torch

from ndeflow.contracts import Batch, DataSpec
from ndeflow.models import ScalarDiffusion
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.tasks import GaussianNLL
from tests.models.series import irregular_batch


def pairs(rows: int = 6) -> Batch:
    """A seen value and one a step later that is not."""
    torch.manual_seed(1)
    ys, ts = torch.randn(rows, 2, 1, dtype=torch.float64), torch.arange(2.0, dtype=torch.float64).expand(rows, -1)
    mask = torch.ones_like(ys, dtype=torch.bool)
    seen = mask & (torch.arange(2)[:, None] == 0)
    return Batch(ts, ys, mask, seen, None, None, torch.arange(rows))


def test_the_law_of_the_next_value_is_that_of_an_euler_step():
    batch, model = pairs(), ScalarDiffusion().double()
    output, x = model(batch), batch.ys[:, 0]
    drift, diffusion = model.moments.sde(batch.ts[0, 0], x)
    torch.testing.assert_close(output.prediction[:, 1], x + drift)
    torch.testing.assert_close(output.std[:, 1], diffusion)
    assert output.solutions[0].stats.nfe.tolist() == [1] * 6


def test_the_likelihood_has_finite_gradients_and_ignores_what_is_not_seen():
    batch, model, spec = pairs(), ScalarDiffusion().double(), DataSpec(("rate",), (0.0,), (1.0,))
    loss = GaussianNLL()(model(batch), batch.ys, batch.scored.double(), spec)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())
    hidden = batch._replace(ys=torch.where(batch.seen, batch.ys, math.nan))
    assert torch.equal(model(hidden).prediction, model(batch).prediction)


def test_a_constant_diffusion_fits_the_spread_of_its_data():
    batch, spec = pairs(200), DataSpec(("rate",), (0.0,), (1.0,))
    model = ScalarDiffusion(drift_width=0, diffusion_width=0).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = GaussianNLL()(model(batch), batch.ys, batch.scored.double(), spec)
        loss.backward()
        return loss

    optimizer.step(closure)
    columns = torch.cat([torch.ones_like(batch.ys[:, 0]), batch.ys[:, 0]], dim=1)
    residual = batch.ys[:, 1] - columns @ torch.linalg.lstsq(columns, batch.ys[:, 1]).solution
    torch.testing.assert_close(
        model(batch).std[:, 1].detach().mean(), residual.square().mean().sqrt(), rtol=1e-5, atol=0
    )


def test_variance_grows_from_zero_over_later_times():
    model = ScalarDiffusion(solver=FixedRungeKutta("rk4", 4))
    with torch.no_grad():
        std = model(irregular_batch(channels=1)).std
    assert (std[:, 0] < 1e-5).all() and (std[:, 1] > 0).all()


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="expected one channel for ScalarDiffusion, got 2"):
        ScalarDiffusion()(irregular_batch())
