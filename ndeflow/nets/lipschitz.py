"""Constraints on weights that bound how much a network can stretch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn


class Constraint(ABC):
    """A set of admissible weights of linear layers, onto which an optimizer's steps are followed by a projection."""

    @abstractmethod
    def project(self, module: nn.Module) -> None:
        """Change the weights of all linear layers of `module`, in place, to admissible ones; biases are free."""


@final
@dataclass(frozen=True)
class Clipping(Constraint):
    """Each entry of a weight (outputs, inputs) within [-1, 1] / outputs: its norm from l1 to l1 is at most 1.

    With `LipSwish` between them and tanh at the end, such layers have Lipschitz constant 1 together. Kidger, Foster,
    Li, Lyons 2021, "Efficient and accurate gradients for neural SDEs", section 5.
    """

    @torch.no_grad()
    def project(self, module: nn.Module) -> None:
        for weight in weights(module):
            weight.clamp_(-1 / len(weight), 1 / len(weight))


@final
@dataclass(frozen=True)
class SpectralNorm(Constraint):
    """Each weight divided by its largest singular value where that exceeds `bound`: Lipschitz in the l2 norm.

    Exact, unlike the power iteration of Miyato et al. 2018, and so without a state. Raises ValueError for a bound that
    is not positive.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        if self.bound <= 0:
            raise ValueError(f"expected a positive bound of the spectral norm, got {self.bound}; 1 is usual")

    @torch.no_grad()
    def project(self, module: nn.Module) -> None:
        for weight in weights(module):
            norm = torch.linalg.matrix_norm(weight, ord=2)
            weight.div_((norm / self.bound).clamp(min=1.0))


def weights(module: nn.Module) -> Iterator[Tensor]:
    """The weight matrices of all linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.weight
