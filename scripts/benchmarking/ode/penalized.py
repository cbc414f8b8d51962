"""ndeflow with penalties of weight 0: what they cost a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarking.measure import kept_bytes
from benchmarking.ode.problem import ODEProblem
from benchmarking.ode.systems import Ndeflow
from benchmarking.problem import loss
from ndeflow import Direct, Regularizer, Solution
from ndeflow.contracts import Output
from ndeflow.models.base import Preparation
from ndeflow.numerics.solve import pose


class Penalized(Ndeflow):
    """ndeflow; the loss has 0 times a penalty added to it, as a training step makes it."""

    def __init__(self, problem: ODEProblem, penalty: Regularizer, compile: str) -> None:
        super().__init__(problem, Direct, compile)
        self.penalty = penalty

    def solution(self) -> Solution:
        return self._terms()[0]

    def kept(self) -> int:
        return kept_bytes(self._terms, self.problem.device)

    def _train(self) -> Tensor:
        self.problem.field.zero_grad()
        solution, total = self._terms()
        total.backward()
        return self._asked(solution)

    def _terms(self) -> tuple[Solution, Tensor]:
        """The solution, read where the penalty wants it too, and the loss."""
        problem, preparation = self.problem, Preparation({"it": self.penalty})
        solution = preparation.solve(self.solver, self.adjoint, pose(problem.field, problem.y0, problem.ts))
        value = self.penalty.penalty(None, Output(solution.ys), None, preparation.solved["it"])
        return solution, torch.add(loss(self._asked(solution)), value, alpha=0.0)

    def _asked(self, solution: Solution) -> Tensor:
        """The states that the problem asks for."""
        count = len(self.problem.ts)
        return solution.ys if solution.ys.shape[1] == count else solution.ys[:, :count]
