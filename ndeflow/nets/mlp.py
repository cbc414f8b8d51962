"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn


@final
class MLP(nn.Module):
    """Linear layers with a smooth activation between them, over the last dimension.

    depth: hidden layers of `width` units; 0: one linear layer. activation: makes a module for each hidden layer; in
    YAML `{_target_: torch.nn.Tanh, _partial_: true}`. SiLU by default: high-order adaptive solvers need smooth fields.
    final: a module after the last layer, such as a Tanh to bound the output.
    last: factor on the last layer's initial weights and biases, which are otherwise torch's, U(-1, 1) / sqrt(inputs);
    a small one starts a field, or a correction to a known one, near zero.
    Raises ValueError for sizes below one and a negative depth.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
        final: nn.Module | None = None,
        last: float = 1.0,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width) < 1 or depth < 0:
            raise ValueError(
                f"expected positive inputs, outputs and width and depth >= 0, got {inputs}, {outputs}, {width}, {depth}"
            )
        sizes = [inputs, *[width] * depth, outputs]
        layers: list[nn.Module] = []
        for size, following in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(size, following), activation()]
        layers[-1:] = [] if final is None else [final]
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in layers[2 * depth].parameters():
                parameter *= last

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.layers(x)
