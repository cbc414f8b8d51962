"""A learned number in place of a network."""

import torch

from ndeflow.nets.constant import Constant


def test_it_is_the_same_for_every_input_and_learned():
    constant = Constant()
    constant(torch.randn(3, 4, 2)).sum().backward()
    assert constant(torch.randn(3, 4, 2)).shape == (3, 4, 1) and constant.value.grad == 12
