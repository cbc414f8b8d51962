"""The divergence of Gaussians, and the encoder that reads backward."""

from __future__ import annotations

import torch

from ndeflow.models.coder import SeriesCoder, gaussian_kl
from tests.models.series import irregular_batch


def test_gaussian_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, std, other, spread = torch.rand(4, 6, 3, generator=generator, dtype=torch.float64) + 0.1
    normals = torch.distributions.Normal(mean, std), torch.distributions.Normal(other, spread)
    expected = torch.distributions.kl_divergence(*normals).sum(dim=-1)
    torch.testing.assert_close(gaussian_kl(mean, std, other, spread), expected)
    assert (gaussian_kl(mean, std, mean, std).abs() < 1e-14).all()


def test_a_code_is_of_what_is_seen_from_its_time_on():
    torch.manual_seed(0)
    coder, batch = SeriesCoder(2, inputs=0, latent=2, hidden=3, width=4), irregular_batch()
    earlier = batch._replace(ys=torch.cat([batch.ys[:, :2] + 1, batch.ys[:, 2:]], dim=1))
    one, other = coder(batch), coder(earlier)
    assert torch.equal(one.codes[:, 2:], other.codes[:, 2:])
    assert not torch.equal(one.mean, other.mean) and (one.std > 0).all()


def test_at_its_prior_the_start_has_no_divergence():
    coder = SeriesCoder(2, inputs=0, latent=2, hidden=3, width=4)
    posterior = coder(irregular_batch())
    assert (coder.start_kl(posterior) > 0).all()
    prior = posterior._replace(mean=coder.prior_mean.expand(5, -1), std=coder.prior_log_std.exp().expand(5, -1))
    assert (coder.start_kl(prior) == 0).all()
