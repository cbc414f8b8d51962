"""An ordinary differential equation, and its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from benchmarking.cases import ODE
from benchmarking.problem import Problem, Result, flat, loss
from ndeflow import RungeKutta, solve

TOLERANCE = 1e-4  # relative and absolute, of every system
TIGHT = 1e-8  # of the reference, in float64
TRIALS = 4  # of horizons
GAIN = 2.0  # of torch's initial weights: a few steps instead of one or two


class Field(nn.Module):
    """A tanh MLP without time; with a rate (B, 1), that many times as fast."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, dim)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(GAIN)

    def forward(self, t: Tensor, y: Tensor, rate: Tensor | None = None) -> Tensor:
        dy = self.last(self.second(self.first(y).tanh()).tanh())
        return dy if rate is None else rate * dy


class ODEProblem(Problem[ODE]):
    """rate: (B, 1), or None."""

    field: Field

    def __init__(self, case: ODE, device: torch.device) -> None:
        super().__init__(case, device)
        self.field = Field(case.dim, case.width).to(device)
        self.y0 = torch.randn(case.batch, case.dim).to(device)
        self.rate: Tensor | None = None
        if case.stiff:
            self.rate = torch.ones(case.batch, 1, device=device)
            self.rate[-1] = case.stiff
        self.ts = torch.linspace(0, self._horizon(), case.saves, device=device)

    def closed(self, field: Field | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """The field as a function of time and state alone."""
        chosen, rate = field or self.field, self.rate
        if rate is None:
            return chosen
        return lambda t, y: chosen(t, y, rate.to(y.dtype))

    def reference(self) -> Result | None:
        """By torchdiffeq's dopri8 in float64; None where that takes too many steps."""
        if self.case.steps:
            return None
        field, ts = copy.deepcopy(self.field).double(), self.ts.double()
        with torch.set_grad_enabled(self.case.train):
            ys: Any = torchdiffeq.odeint(
                self.closed(field), self.y0.double(), ts, method="dopri8", rtol=TIGHT, atol=TIGHT
            )
        if self.case.train:
            loss(ys).backward()
        return Result(ys[-1].detach().cpu(), flat(p.grad for p in field.parameters()) if self.case.train else None)

    def _horizon(self) -> float:
        """1, or what takes the case's number of steps, found by trial."""
        end, solver = 1.0, RungeKutta("dopri5", TOLERANCE, TOLERANCE, compile="off")
        for _ in range(TRIALS if self.case.steps else 0):
            with torch.no_grad():
                trial = solve(self.field, self.y0, torch.tensor([0.0, end], device=self.device), solver=solver)
            end *= (self.case.steps or 1) / int(trial.stats.accepted[0])
        return end
