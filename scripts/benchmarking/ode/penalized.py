"""ndeflow with penalties of weight 0: what its estimates cost on the autograd graph."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarking.measure import kept_bytes
from benchmarking.ode.problem import ODEProblem
from benchmarking.ode.systems import Ndeflow
from benchmarking.problem import loss
from ndeflow import Direct, Solution
from ndeflow.contracts import Output, Solved
from ndeflow.regularizers import GlobalError


class Penalized(Ndeflow):
    """ndeflow; the loss has 0 times a penalty of the solution added to it."""

    def __init__(self, problem: ODEProblem, penalty: Callable[[Solution], Tensor], compile: str) -> None:
        super().__init__(problem, Direct, compile)
        self.penalty = penalty

    def kept(self) -> int:
        return kept_bytes(self._terms, self.problem.device)

    def _train(self) -> Tensor:
        self.problem.field.zero_grad()
        ys, total = self._terms()
        total.backward()
        return ys

    def _terms(self) -> tuple[Tensor, Tensor]:
        """The states, and the loss."""
        solution = self.solution()
        return solution.ys, loss(solution.ys) + 0.0 * self.penalty(solution)


def error(solution: Solution) -> Tensor:
    """As the regularizer has it."""
    return GlobalError().penalty(None, Output(solution.ys), None, [Solved(solution, range(0), range(0))])


def stiffness(solution: Solution) -> Tensor:
    """As a user writes it."""
    assert solution.stats.stiffness is not None
    return solution.stats.stiffness.sum()
