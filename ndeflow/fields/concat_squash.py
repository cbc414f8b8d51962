"""A right-hand side whose layers are scaled and shifted by the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn


@final
class ConcatSquash(nn.Module):
    """(W x + b) sigmoid(u t + v) + w t: x (B, ..., inputs) -> (B, ..., outputs), t broadcasts against x.

    The layer of Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, "FFJORD", appendix B.1.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(inputs, outputs), nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        time = (t if t.dim() else t[None]).to(x.dtype)
        return torch.addcmul(self.shift(time), self.linear(x), self.gate(time).sigmoid())


@final
class ConcatSquashField(nn.Module):
    """dy/dt = a perceptron of `ConcatSquash` layers with a smooth activation between them: (B, size) -> (B, size).

    depth: hidden layers of `width` units. activation: as in `MLP`; softplus by default, as in FFJORD. Raises ValueError
    for sizes below one and a negative depth.
    """

    def __init__(
        self,
        size: int,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        super().__init__()
        if min(size, width) < 1 or depth < 0:
            raise ValueError(f"expected positive size and width and depth >= 0, got {size}, {width}, {depth}")
        sizes = [size, *[width] * depth, size]
        self.layers = nn.ModuleList(ConcatSquash(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.activation = activation()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        first, *others = self.layers
        y = first(t, y)
        for layer in others:
            y = layer(t, self.activation(y))
        return y
