"""A multilayer perceptron that cannot stretch more than a given factor."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ndeflow.nets.lipswish import LipSwish

ITERATIONS = 5  # the bound exceeds the norm by a factor of at most rank^(1/64): 1.07 for 64 units


@final
class LipschitzMLP(nn.Module):
    """Linear layers and LipSwish, |f(x) - f(x')| <= lipschitz |x - x'| in the l2 norm at all weights.

    Each of the depth + 1 weights is used as W min(1, c / `spectral_bound`(W)) with c = lipschitz^(1 / (depth + 1)): the
    bound holds whatever an optimizer does, and needs neither a projection after its steps nor a state. inputs, outputs,
    width, depth: as of `MLP`. Raises ValueError for sizes below one, a negative depth, and lipschitz <= 0.
    """

    def __init__(self, inputs: int, outputs: int, *, lipschitz: float = 1.0, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        if min(inputs, outputs, width) < 1 or depth < 0 or lipschitz <= 0:
            raise ValueError(
                "expected positive inputs, outputs, width and lipschitz and depth >= 0, got "
                f"{inputs}, {outputs}, {width}, {lipschitz}, {depth}"
            )
        sizes = [inputs, *[width] * depth, outputs]
        self.limit = lipschitz ** (1 / (depth + 1))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.activation = LipSwish()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        first, *others = self.layers
        x = self.limited(first, x)
        for layer in others:
            x = self.limited(layer, self.activation(x))
        return x

    def limited(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The layer with a weight whose norm is at most the limit."""
        assert isinstance(layer, nn.Linear)
        weight = layer.weight * (self.limit / spectral_bound(layer.weight).clamp(min=self.limit))
        return nn.functional.linear(x, weight, layer.bias)


def spectral_bound(weight: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """An upper bound, 0-dim and differentiable, of the largest singular value of a matrix.

    ||W||_2 = ||G_n||_2^(1 / 2^n) <= ||G_n||_F^(1 / 2^n) with G_0 = W, G_{n+1} = G_n^T G_n, each divided by its
    Frobenius norm on the way. Delattre, Barthelemy, Araujo, Allauzen 2023, "Efficient bound of Lipschitz constant for
    convolutional layers by Gram iteration".
    """
    tiny = torch.finfo(weight.dtype).tiny
    gram = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    bound = torch.ones_like(gram[0, 0])
    for n in range(iterations + 1):
        gram = gram.mT @ gram if n else gram
        norm = torch.linalg.vector_norm(gram).clamp(min=tiny)
        gram, bound = gram / norm, bound * norm ** (0.5**n)
    return bound
