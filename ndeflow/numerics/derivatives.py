"""Derivatives of a right-hand side: its value alone, and integrands of its divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn


def derivative(field: Any, t: Tensor, y: Tensor, context: Any) -> Tensor:
    """dy/dt of a field, without integrals of its own."""
    dy = field(t, y) if context is None else field(t, y, context)
    return dy[0] if isinstance(dy, tuple) else dy


class Divergence(nn.Module, ABC):
    """The integrand tr df/dy of dy/dt = f(t, y): the rate at which the logarithm of a volume grows along the flow.

    A density carried by the flow falls at this rate: d log p(y(t)) / dt = -tr df/dy (Chen, Rubanova, Bettencourt,
    Duvenaud 2018, "Neural ordinary differential equations", theorem 1). Give `solve` the pair (it, own(y0)). Rows must
    not depend on one another.
    """

    def own(self, y0: Tensor) -> Any:
        """The integrand's own context for one solve from y0 (B, *state); none by default."""
        return None

    @abstractmethod
    def forward(self, field: Any, t: Tensor, y: Tensor, dy: Tensor, context: Any, own: Any) -> Tensor:
        """(B,), at t and y (B, *state), with dy = field(t, y)."""


@final
class ExactDivergence(Divergence):
    """tr df/dy by one product with the Jacobian for each of the D components of the state: for small D."""

    def forward(self, field: Any, t: Tensor, y: Tensor, dy: Tensor, context: Any, own: Any) -> Tensor:
        pull = torch.func.vjp(lambda z: derivative(field, t, z, context), y)[1]
        units = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device).view(-1, 1, *y.shape[1:])
        rows = [pull(unit.expand_as(y))[0].flatten(1) for unit in units.unbind()]
        return sum((row[:, k] for k, row in enumerate(rows)), start=torch.zeros_like(rows[0][:, 0]))


@final
class HutchinsonDivergence(Divergence):
    """e' df/dy e, with one e a row and solve, fixed along it: E e' J e = tr J, by a single product with the Jacobian.

    e has independent components of mean 0 and variance 1, signs (Rademacher), or normal ones with gaussian=True, whose
    estimate varies more; it is drawn from torch's default generator. Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud
    2019, "FFJORD", section 3.1.
    """

    def __init__(self, *, gaussian: bool = False) -> None:
        super().__init__()
        self.gaussian = gaussian

    def own(self, y0: Tensor) -> Tensor:
        return torch.randn_like(y0) if self.gaussian else 2 * torch.randint_like(y0, 2) - 1

    def forward(self, field: Any, t: Tensor, y: Tensor, dy: Tensor, context: Any, own: Any) -> Tensor:
        pull = torch.func.vjp(lambda z: derivative(field, t, z, context), y)[1]
        return (pull(own)[0] * own).flatten(1).sum(dim=1)
