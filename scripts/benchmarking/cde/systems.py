"""ndeflow and torchcde on the same equation."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from benchmarking.cde.problem import TOLERANCE, CDEProblem
from benchmarking.torch_system import NdeflowSystem, TorchSystem
from ndeflow import Checkpointed, Controlled, Direct, FixedRungeKutta, RungeKutta, Solution, solve
from ndeflow.numerics.paths import Hermite


class Ndeflow(NdeflowSystem[CDEProblem]):
    """ndeflow. compile: of its solver."""

    def __init__(self, problem: CDEProblem, adjoint: type[Direct | Checkpointed], compile: str) -> None:
        super().__init__(problem, compile)
        self.adjoint, self.along = adjoint(), Controlled(problem.field)
        self.path = Hermite.through(problem.knots, problem.xs)
        self.solver = SOLVERS[problem.case.method](compile)

    def solution(self) -> Solution:
        problem = self.problem
        return solve(self.along, problem.y0, problem.ts, solver=self.solver, adjoint=self.adjoint, context=self.path)


SOLVERS: dict[str, Any] = {
    "rk4": lambda compile: FixedRungeKutta("rk4", compile=compile),
    "dopri5": lambda compile: RungeKutta("dopri5", TOLERANCE, TOLERANCE, compile=compile),
}


class TorchCDE(TorchSystem[CDEProblem]):
    """torchcde, autograd through torchdiffeq's solve. jumps: it is told the knots, that steps end there."""

    def __init__(self, problem: CDEProblem, jumps: bool = False) -> None:
        super().__init__(problem)
        torchcde: Any = importlib.import_module("torchcde")
        coefficients = torchcde.hermite_cubic_coefficients_with_backward_differences(problem.xs, problem.knots)
        self.path, self.cdeint = torchcde.CubicSpline(coefficients, problem.knots), torchcde.cdeint
        self.settings: dict[str, Any] = {"method": "rk4", "options": {"step_size": 1.0}}
        if problem.case.method == "dopri5":
            options = {"jump_t": problem.knots} if jumps else {}
            self.settings = {"method": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE, "options": options}

    def solve(self) -> Tensor:
        problem = self.problem
        return self.cdeint(self.path, problem.field, problem.y0, problem.ts, adjoint=False, **self.settings)
