"""Penalties that are integrals along the solution, solved beside it; they do not steer the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from ndeflow.contracts import Decay, Problem, Solved
from ndeflow.numerics.derivatives import Evaluation, Integrand, JacobianIntegrand, derivative
from ndeflow.regularizers.solves import SolvePenalty, needs_derivative


class Integral(SolvePenalty):
    """The mean over the batch of an integral over the whole solve, of a rate that is a mean over the state.

    Several solves of a training step are added up. Raises ValueError for an SDE, whose drift alone is not its path's
    derivative.
    """

    rate: Integrand

    def own(self, problem: Problem) -> Any:
        """The integrand's own context, for one solve."""
        return None

    def prepare(self, problem: Problem) -> Problem:
        needs_derivative(problem, type(self).__name__)
        return replace(problem, integrands=(*problem.integrands, (self.rate, self.own(problem))))

    def of(self, one: Solved) -> Tensor:
        end = one.solution.problem.ts.shape[-1] - 1
        return one.solution.integrals[:, end, one.integrals.start].mean()


class KineticRate(Integrand):
    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return 0.5 * _mean_square(at.dy)


@final
class Kinetic(Integral):
    """The kinetic energy int |f|^2 / (2 d) dt of the solution (RNODE); see `Integral`.

    Finlay, Jacobsen, Nurbekyan, Oberman 2020, "How to train your neural ODE", eq. 8, with the published code's mean
    over the d components of the state. It costs no evaluation.
    """

    def __init__(self, weight: float | Decay = 0.01) -> None:
        super().__init__(weight)
        self.rate = KineticRate()


class JacobianRate(JacobianIntegrand):
    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return _mean_square(at.product(own))


@final
class JacobianFrobenius(Integral):
    """int |df/dy|_F^2 / d dt, by e' df/dy with one Gaussian e a solve, fixed along it (RNODE); see `Integral`.

    E |e' J|^2 = |J|_F^2. Finlay, Jacobsen, Nurbekyan, Oberman 2020, eq. 9, Hutchinson's estimate as in its published
    code. It costs a product with the Jacobian an evaluation, next to nothing beside an `ExactDivergence`.
    """

    def __init__(self, weight: float | Decay = 0.01) -> None:
        super().__init__(weight)
        self.rate = JacobianRate()

    def own(self, problem: Problem) -> Tensor:
        return torch.randn_like(problem.y0)


class TaylorRate(Integrand):
    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, at: Evaluation, own: Any) -> Tensor:
        return _mean_square(self._total(self.order, at.field, at.t, at.y, at.context))

    def _total(self, order: int, field: Any, t: Tensor, y: Tensor, context: Any) -> Tensor:
        """d^k y / dt^k along the solution: the derivative of the one before in the direction (1, f)."""
        if order == 1:
            return derivative(field, t, y, context)

        def before(t: Tensor, y: Tensor) -> Tensor:
            return self._total(order - 1, field, t, y, context)

        now, pull = torch.func.vjp(before, t, y)[:2]
        _, push = torch.func.vjp(pull, now)[:2]  # the product with the Jacobian, as the transpose of its transpose
        return push((torch.ones_like(t), derivative(field, t, y, context)))[0]


@final
class TaylorDerivative(Integral):
    """int |d^K y / dt^K|^2 / d dt, the K-th derivative of the solution (TayNODE); see `Integral`.

    Kelly, Bettencourt, Johnson, Duvenaud 2020, "Learning differential equations that are easy to solve", eq. 1. Exact,
    by products with the Jacobian within each other, at a cost that doubles with K several times over: K is 2 or 3.
    Raises ValueError for another order.
    """

    def __init__(self, weight: float | Decay = 0.1, *, order: int = 2) -> None:
        super().__init__(weight)
        if order not in (2, 3):
            raise ValueError(
                f"expected order 2 or 3, got {order}; order 1 is Kinetic(), and above 3 the cost doubles with each"
            )
        self.rate = TaylorRate(order)


def _mean_square(x: Tensor) -> Tensor:
    """Of each row: (B,)."""
    return x.abs().square().flatten(1).mean(dim=1)
