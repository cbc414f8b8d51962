"""ndeflow, torchsde and a loop written by hand on the same equation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from benchmarking.measure import kept_bytes
from benchmarking.problem import Result
from benchmarking.sde.problem import METHODS, SEED, Field, SDEProblem
from benchmarking.torch_system import NdeflowSystem, TorchSystem
from ndeflow import Brownian, Checkpointed, Direct, Solution, Stochastic, solve

COUNTED = 1_000  # steps of a loop whose memory is looked at


class Ndeflow(NdeflowSystem[SDEProblem]):
    """ndeflow. compile: of its Stochastic. Every solution has the noise of another seed."""

    def __init__(self, problem: SDEProblem, adjoint: type[Direct | Checkpointed], compile: str) -> None:
        super().__init__(problem, compile)
        self.adjoint = adjoint()
        self.solver = Stochastic(problem.case.method, problem.case.steps, compile=compile)
        self.seeds = count(SEED + 1)

    def solution(self) -> Solution:
        problem, noise = self.problem, Brownian(next(self.seeds))
        return solve(problem.field, problem.y0, problem.ts, solver=self.solver, adjoint=self.adjoint, noise=noise)

    def result(self) -> Result | None:
        self.seeds = count(SEED)
        return super().result()


class Apart(TorchSystem[SDEProblem]):
    """A system with noise of its own."""

    def result(self) -> None:
        return None


class TorchSDE(Apart):
    """torchsde, autograd through its steps, Milstein's without derivatives. motion: Brownian motion, None: its own."""

    def __init__(self, problem: SDEProblem, motion: Callable[[SDEProblem], Any]) -> None:
        super().__init__(problem)
        self.equation, self.motion = Equation(problem.field), motion
        self.options = {"grad_free": True} if problem.case.method == "milstein" else {}

    def solve(self) -> Tensor:
        problem = self.problem
        ys: Any = torchsde.sdeint(
            self.equation,
            problem.y0,
            problem.ts,
            bm=self.motion(problem),
            method=problem.case.method,
            dt=problem.dt,
            options=self.options,
        )
        return ys.transpose(0, 1)


class Equation(nn.Module):
    """An SDE under the names that torchsde has."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.f, self.g = field.drift, field.diffusion


def interval(problem: SDEProblem) -> Any:
    """torchsde's, told the steps that will be asked for; a new seed each time."""
    return torchsde.BrownianInterval(
        0.0,
        problem.case.end,
        size=problem.y0.shape,
        dtype=problem.y0.dtype,
        device=problem.device,
        dt=problem.dt,
        levy_area_approximation="none",
    )


class Loop(Apart):
    """The steps one after the other as one writes them by hand, recorded by autograd."""

    def solve(self) -> Tensor:
        return self._steps(self.problem.case.steps)

    def kept(self) -> int:
        """Of the first 1,000 steps; autograd keeps as much of every other."""
        steps = self.problem.case.steps
        counted = min(steps, COUNTED)
        return kept_bytes(lambda: self._steps(counted), self.problem.device) * steps // counted

    def _steps(self, steps: int) -> Tensor:
        problem = self.problem
        step, field, t, y = METHODS[problem.case.method], problem.field, problem.ts[0], problem.y0
        for _ in range(steps):
            dw = torch.randn_like(y) * problem.dt**0.5
            y = step(lambda y: field.drift(t, y), lambda y: field.diffusion(t, y), y, problem.dt, dw)
        return torch.stack([problem.y0, y], 1)
