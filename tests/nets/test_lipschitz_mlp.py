"""A network that cannot stretch, whatever its weights, and the bound of a matrix's norm behind it."""

from __future__ import annotations

import pytest
import torch

from ndeflow.nets.lipschitz_mlp import LipschitzMLP, spectral_bound

SHAPES = pytest.mark.parametrize("shape", [(64, 32), (32, 64), (5, 5), (1, 7), (7, 1)])


@SHAPES
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_bound_lies_little_above_the_largest_singular_value(shape, size):
    torch.manual_seed(0)
    weight = size * torch.randn(*shape, dtype=torch.float64)
    norm = torch.linalg.matrix_norm(weight, ord=2)
    bound = spectral_bound(weight)
    assert norm <= bound * (1 + 1e-12) and bound < 1.07 * norm
    torch.testing.assert_close(spectral_bound(weight.float()).double(), bound, rtol=1e-5, atol=0)


def test_the_bound_is_loosest_where_all_singular_values_are_equal():
    assert float(spectral_bound(torch.eye(64, dtype=torch.float64))) == pytest.approx(64 ** (1 / 64))
    assert spectral_bound(torch.zeros(3, 2)) == 0


@SHAPES
def test_the_bound_has_the_gradient_of_finite_differences(shape):
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(spectral_bound, torch.randn(*shape, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_it_stretches_by_at_most_its_constant_however_it_was_trained(depth):
    torch.manual_seed(0)
    net = LipschitzMLP(4, 3, lipschitz=1.5, width=16, depth=depth).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5)
    near, far = torch.randn(2, 300, 4, dtype=torch.float64).unbind()
    far = near + 0.1 * (far - near)
    for _ in range(20):
        stretch = (net(near) - net(far)).norm(dim=1) / (near - far).norm(dim=1)
        assert stretch.max() <= 1.5
        optimizer.zero_grad()
        (-stretch.mean()).backward()  # as steep as it can get
        optimizer.step()
    assert stretch.max() > 0.5
    slopes = torch.func.vmap(torch.func.jacrev(net))(near)
    assert torch.linalg.matrix_norm(slopes, ord=2).max() <= 1.5


def test_weights_within_the_limit_are_used_as_they_are():
    net = LipschitzMLP(2, 2, lipschitz=4.0, depth=0)
    x = torch.randn(5, 2)
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.eye(2))
    torch.testing.assert_close(net(x), x + net.layers[0].bias)


def test_all_weights_zero_have_finite_gradients():
    net = LipschitzMLP(2, 2, width=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    net(torch.randn(5, 2)).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("options", [{"lipschitz": 0.0}, {"width": 0}, {"depth": -1}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="expected positive inputs"):
        LipschitzMLP(2, 2, **options)
