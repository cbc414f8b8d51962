"""ndeflow, torchdiffeq and torchode on the same field, and the time that its bare evaluations take."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.func import functional_call, vjp

from benchmarking.measure import kept_bytes, synchronize
from benchmarking.problems import TOLERANCE, Field, Problem, Result, flat, loss
from benchmarking.system import Cost, System
from ndeflow import Checkpointed, Direct, RungeKutta, Solution, solve

STAGES = 6  # evaluations of one step of dopri5


@dataclass
class Count:
    """Calls of a field and rows computed in them, in a `with` block; of calls that Python makes."""

    field: Field
    calls: int = 0
    rows: int = 0

    def __enter__(self) -> Count:
        self._hook = self.field.register_forward_pre_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _add(self, module: Any, inputs: tuple[Tensor, Tensor]) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(inputs[1])


class TorchSystem(System):
    """A system whose solve autograd records, or that is an autograd function."""

    @abstractmethod
    def solve(self) -> Tensor:
        """The states at all save times, (B, T, dim)."""

    def call(self) -> None:
        self._train() if self.problem.case.train else self._forward()
        synchronize(self.problem.device)

    def cost(self) -> Cost:
        """Counted by the field itself."""
        with Count(self.problem.field) as count:
            ys = self._forward()
            calls, rows = count.calls, count.rows
            if self.problem.case.train:
                loss(ys).backward()
        return Cost(calls, count.calls - calls, counted=rows)

    def result(self) -> Result:
        if not self.problem.case.train:
            return Result(self._forward()[:, -1].double().cpu(), None)
        ys = self._train()
        return Result(ys[:, -1].detach().double().cpu(), flat(p.grad for p in self.problem.field.parameters()))

    def kept(self) -> int:
        return kept_bytes(self._forward, self.problem.device)

    def _forward(self) -> Tensor:
        with torch.set_grad_enabled(self.problem.case.train):
            return self.solve()

    def _train(self) -> Tensor:
        self.problem.field.zero_grad()
        ys = self._forward()
        loss(ys).backward()
        return ys


class Ndeflow(TorchSystem):
    """ndeflow. compile, batching: of its RungeKutta."""

    def __init__(
        self, problem: Problem, adjoint: type[Direct | Checkpointed], compile: str, batching: str = "shared"
    ) -> None:
        super().__init__(problem)
        self.adjoint, self.compiled = adjoint(), compile == "on"
        self.solver = RungeKutta("dopri5", TOLERANCE, TOLERANCE, compile=compile, batching=batching)

    def solve(self) -> Tensor:
        return self._solution(slice(None)).ys

    def cost(self) -> Cost:
        """As the solver counts, beside the field's count where Python runs it; compiled, it takes no hooks."""
        count = Count(self.problem.field)
        with nullcontext() if self.compiled else count, torch.set_grad_enabled(self.problem.case.train):
            solutions = self._solutions()
        if self.problem.case.train:
            loss(torch.cat([solution.ys for solution in solutions])).backward()
        nfe = torch.cat([solution.stats.nfe for solution in solutions])
        again = sum((solution.stats.backward_nfe or [0])[0] for solution in solutions)
        return Cost(int(nfe.max()), again, int(nfe.sum()), None if self.compiled else count.rows)

    def _solutions(self) -> list[Solution]:
        return [self._solution(slice(None))]

    def _solution(self, rows: slice) -> Solution:
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
        return [self._solution(slice(b, b + 1)) for b in range(self.problem.case.batch)]


class TorchDiffEq(TorchSystem):
    """torchdiffeq. adjoint: its continuous adjoint, else autograd through the solve."""

    def __init__(self, problem: Problem, adjoint: bool = False) -> None:
        super().__init__(problem)
        self.odeint: Any = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def solve(self) -> Tensor:
        problem = self.problem
        ys = self.odeint(problem.closed(), problem.y0, problem.ts, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)
        return ys.transpose(0, 1)


class Torchode(TorchSystem):
    """torchode, uncompiled. The batch is handed over as one long row, so that it shares its steps as elsewhere."""

    def __init__(self, problem: Problem) -> None:
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

    def __init__(self, problem: Problem) -> None:
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
