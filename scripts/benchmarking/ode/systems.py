"""ndeflow, torchdiffeq and torchode on the same field, and the time that its bare evaluations take."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.func import functional_call, vjp

from benchmarking.measure import synchronize
from benchmarking.ode.problem import TOLERANCE, ODEProblem
from benchmarking.torch_system import NdeflowSystem, TorchSystem
from ndeflow import Checkpointed, Direct, RungeKutta, Solution, solve

STAGES = 6  # evaluations of one step of dopri5


class Ndeflow(NdeflowSystem[ODEProblem]):
    """ndeflow. compile, batching: of its RungeKutta."""

    def __init__(
        self, problem: ODEProblem, adjoint: type[Direct | Checkpointed], compile: str, batching: str = "shared"
    ) -> None:
        super().__init__(problem, compile)
        self.adjoint = adjoint()
        self.solver = RungeKutta("dopri5", TOLERANCE, TOLERANCE, compile=compile, batching=batching)

    def solution(self) -> Solution:
        return self._of(slice(None))

    def _of(self, rows: slice) -> Solution:
        problem, rate = self.problem, self.problem.rate
        context = None if rate is None else rate[rows]
        return solve(
            problem.field, problem.y0[rows], problem.ts, solver=self.solver, adjoint=self.adjoint, context=context
        )


class Separate(Ndeflow):
    """ndeflow, each row solved by itself, one after the other."""

    def solve(self) -> Tensor:
        return torch.cat([solution.ys for solution in self._solutions()])

    def _solutions(self) -> list[Solution]:
        return [self._of(slice(b, b + 1)) for b in range(self.problem.case.batch)]


class TorchDiffEq(TorchSystem[ODEProblem]):
    """torchdiffeq. adjoint: its continuous adjoint, else autograd through the solve."""

    def __init__(self, problem: ODEProblem, adjoint: bool = False) -> None:
        super().__init__(problem)
        self.odeint: Any = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def solve(self) -> Tensor:
        problem = self.problem
        ys = self.odeint(problem.closed(), problem.y0, problem.ts, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)
        return ys.transpose(0, 1)


class Torchode(TorchSystem[ODEProblem]):
    """torchode, uncompiled. The batch is handed over as one long row, so that it shares its steps as elsewhere."""

    def __init__(self, problem: ODEProblem) -> None:
        super().__init__(problem)
        torchode = importlib.import_module("torchode")  # its annotations are no types
        field, shape = problem.closed(), problem.y0.shape
        term = torchode.ODETerm(lambda t, y: field(t, y.view(shape)).view(1, -1))
        controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        self.solver = torchode.AutoDiffAdjoint(
            torchode.Dopri5(term=term), controller, backprop_through_step_size_control=False
        )
        self.start = torchode.InitialValueProblem(y0=problem.y0.view(1, -1), t_eval=problem.ts.view(1, -1))

    def solve(self) -> Tensor:
        ys: Any = self.solver.solve(self.start).ys
        return ys.view(len(self.problem.ts), *self.problem.y0.shape).transpose(0, 1)


class BareField:
    """The field's evaluations without a solver: the six of a step, each of the last one's value, by torch.compile.

    Forward, or their vector-Jacobian product with its forward pass, activations kept.
    """

    def __init__(self, problem: ODEProblem) -> None:
        self.problem = problem
        self.weights = {name: p.detach() for name, p in problem.field.named_parameters()}
        self.cotangent, self.t = torch.ones_like(problem.y0), problem.ts[0]
        evaluate = self._product if problem.case.train else self._chain
        self.compiled = torch.compile(evaluate, fullgraph=True, options={"cpp_wrapper": True})

    def call(self) -> None:
        with torch.no_grad():
            self.compiled(self.problem.y0, self.weights)
        synchronize(self.problem.device)

    def _chain(self, y: Tensor, weights: dict[str, Tensor]) -> Tensor:
        for _ in range(STAGES):
            y = functional_call(self.problem.field, weights, (self.t, y))
        return y

    def _product(self, y: Tensor, weights: dict[str, Tensor]) -> Any:
        return vjp(self._chain, y, weights)[1](self.cotangent)
