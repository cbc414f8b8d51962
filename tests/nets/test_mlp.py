"""The perceptron's shape, activations and initial size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from ndeflow.nets.mlp import MLP


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_depth_counts_hidden_layers(depth):
    net = MLP(3, 2, width=5, depth=depth)
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    expected = [3, *[5] * depth, 2]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip(expected, expected[1:], strict=False)
    )
    assert sum(isinstance(layer, nn.SiLU) for layer in net.modules()) == depth
    assert net(torch.zeros(4, 7, 3)).shape == (4, 7, 2)


def test_activation_is_made_for_each_layer_and_final_comes_last():
    net = MLP(3, 2, depth=2, activation=partial(nn.ELU, alpha=0.5), final=nn.Tanh())
    activations = [layer for layer in net.modules() if isinstance(layer, nn.ELU)]
    assert len(activations) == 2 and all(layer.alpha == 0.5 for layer in activations)
    assert net(1e3 * torch.randn(50, 3)).abs().max() <= 1


def test_last_scales_the_initial_output():
    x = torch.randn(20, 3)
    torch.manual_seed(0)
    full = MLP(3, 2)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(MLP(3, 2, last=0.01)(x), 0.01 * full)


@pytest.mark.parametrize("sizes", [{"inputs": 0}, {"outputs": 0}, {"width": 0}, {"depth": -1}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected positive inputs, outputs and width"):
        MLP(**{"inputs": 1, "outputs": 1, **sizes})
