"""An evaluation of a right-hand side, products with its Jacobian, and what is integrated beside the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, final

import torch
from torch import Tensor, nn

from ndeflow.numerics.transforms import transformed


def derivative(field: Any, t: Tensor, y: Tensor, context: Any) -> Tensor:
    """dy/dt of a field, without integrals of its own."""
    dy = field(t, y) if context is None else field(t, y, context)
    return dy[0] if isinstance(dy, tuple) else dy


def recorded(evaluate: Callable[[Tensor], Any], y: Tensor) -> tuple[Tensor, Any]:
    """y, and what a right-hand side gives there, as a function of this y that autograd recorded even without gradients.

    As it is where gradients are enabled, and in inference mode and under the transforms of torch.func.
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or transformed():
        return y, evaluate(y)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        return y, evaluate(y)


@final
class Evaluation:
    """dy = f(t, y) of a field, (B, *state), and its Jacobian df/dy, a matrix for each row, by products from the left.

    For these rows must not depend on one another. Where autograd recorded dy as a function of y, they come from that
    evaluation. Elsewhere f is evaluated once more: where gradients are enabled but y has none, as at the start of a
    solve, in inference mode and under the transforms of torch.func. t broadcasts against y.
    """

    def __init__(self, field: Any, t: Tensor, y: Tensor, dy: Tensor, context: Any) -> None:
        self.field, self.t, self.y, self.dy, self.context = field, t, y, dy, context

    @cached_property
    def rows(self) -> list[Tensor]:
        """The gradient of each of the D components of f: D tensors (B, D)."""
        units = torch.eye(self.y[0].numel(), dtype=self.y.dtype, device=self.y.device).view(-1, 1, *self.y.shape[1:])
        return [self._pull(unit.expand_as(self.y)).flatten(1) for unit in units.unbind()]

    def product(self, e: Tensor) -> Tensor:
        """e' df/dy (B, *state) of e (B, *state); from the rows, where they have been asked for before."""
        if "rows" not in vars(self):
            return self._pull(e)
        weights = e.flatten(1).unsqueeze(-1).unbind(1)
        return sum(map(torch.mul, weights, self.rows), start=torch.zeros_like(self.rows[0])).view_as(e)

    @cached_property
    def _pull(self) -> Callable[[Tensor], Tensor]:
        y, dy = self.y, self.dy
        if y.requires_grad and dy.requires_grad and not transformed():
            options: Any = {"retain_graph": True, "create_graph": torch.is_grad_enabled(), "materialize_grads": True}
            return lambda e: torch.autograd.grad(dy, y, e, **options)[0]
        pull = torch.func.vjp(partial(_of_state, self.field, self.t, self.context), y)[1]
        return lambda e: pull(e)[0]


def _of_state(field: Any, t: Tensor, context: Any, y: Tensor) -> Tensor:
    return derivative(field, t, y, context)


class Integrand(nn.Module, ABC):
    """What is integrated beside the state, of each row."""

    @abstractmethod
    def forward(self, at: Evaluation, own: Any) -> Tensor:
        """(B,), where the field was evaluated. own: the integrand's own context."""


class JacobianIntegrand(Integrand):
    """One that reads the Jacobian: for it evaluations are recorded by autograd, once for all that read it."""


class Divergence(JacobianIntegrand):
    """The integrand tr df/dy of dy/dt = f(t, y): the rate at which the logarithm of a volume grows along the flow.

    A density carried by the flow falls at this rate: d log p(y(t)) / dt = -tr df/dy (Chen, Rubanova, Bettencourt,
    Duvenaud 2018, "Neural ordinary differential equations", theorem 1). Give `solve` the pair (it, own(y0)).
    """

    def own(self, y0: Tensor) -> Any:
        """The integrand's own context for one solve from y0 (B, *state); none by default."""
        return None


@final
class ExactDivergence(Divergence):
    """tr df/dy by one product with the Jacobian for each of the D components of the state: for small D."""

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        rows = at.rows
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

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return (at.product(own) * own).flatten(1).sum(dim=1)
