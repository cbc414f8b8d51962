"""Systems on torch: what autograd records, or an autograd function; ndeflow among them."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarking.measure import kept_bytes, synchronize
from benchmarking.problem import Result, flat, loss
from benchmarking.system import Cost, P, System
from ndeflow import Solution


@dataclass
class Count:
    """Calls of a module (time, state) and rows computed in them, in a `with` block; of calls that Python makes."""

    module: nn.Module
    calls: int = 0
    rows: int = 0

    def __enter__(self) -> Count:
        self._hook = self.module.register_forward_pre_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _add(self, module: Any, inputs: tuple[Tensor, Tensor]) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(inputs[1])


class TorchSystem(System[P]):
    """A system whose solve autograd records, or that is an autograd function."""

    @abstractmethod
    def solve(self) -> Tensor:
        """The states at all save times, (B, T, dim)."""

    def call(self) -> None:
        self._train() if self.problem.case.train else self._forward()
        synchronize(self.problem.device)

    def cost(self) -> Cost:
        """Counted by the field itself."""
        with Count(self.problem.evaluated) as count:
            ys = self._forward()
            calls, rows = count.calls, count.rows
            if self.problem.case.train:
                loss(ys).backward()
        return Cost(calls, count.calls - calls, counted=rows)

    def result(self) -> Result | None:
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


class NdeflowSystem(TorchSystem[P]):
    """ndeflow. compile: of its solver."""

    def __init__(self, problem: P, compile: str) -> None:
        super().__init__(problem)
        self.compiled = compile == "on"

    @abstractmethod
    def solution(self) -> Solution: ...

    def solve(self) -> Tensor:
        return self.solution().ys

    def cost(self) -> Cost:
        """As the solver counts, beside the field's count where Python runs it; compiled, it takes no hooks."""
        count = Count(self.problem.evaluated)
        with nullcontext() if self.compiled else count, torch.set_grad_enabled(self.problem.case.train):
            solutions = self._solutions()
        if self.problem.case.train:
            loss(torch.cat([solution.ys for solution in solutions])).backward()
        nfe = torch.cat([solution.stats.nfe for solution in solutions])
        again = sum((solution.stats.backward_nfe or [0])[0] for solution in solutions)
        return Cost(int(nfe.max()), again, int(nfe.sum()), None if self.compiled else count.rows)

    def _solutions(self) -> list[Solution]:
        return [self.solution()]
