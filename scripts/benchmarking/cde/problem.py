"""A controlled differential equation, and its reference."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from benchmarking.cases import CDE
from benchmarking.problem import Hidden, Problem, Result, flat, loss
from ndeflow import Controlled
from ndeflow.numerics.paths import Hermite

TOLERANCE = 1e-4  # relative and absolute, of every system
TIGHT = 1e-8  # of the reference, in float64
STRIDE = 0.1  # of the control, from knot to knot


class Matrix(nn.Module):
    """tanh(MLP(y)) as a matrix: t, (B, hidden) -> (B, hidden, channels)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.mlp, self.shape = Hidden(hidden, hidden, hidden * channels), (hidden, channels)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mlp(t, y).tanh().unflatten(-1, self.shape)


class CDEProblem(Problem[CDE]):
    """xs (B, length, channels): a random walk at the knots (length,). ts: start and end."""

    field: Matrix

    def __init__(self, case: CDE, device: torch.device) -> None:
        super().__init__(case, device)
        self.field = Matrix(case.hidden, case.channels).to(device)
        self.xs = STRIDE * torch.randn(case.batch, case.length, case.channels).cumsum(1).to(device)
        self.y0 = torch.randn(case.batch, case.hidden).to(device)
        self.knots = torch.arange(case.length, device=device).to(self.xs)
        self.ts = self.knots[[0, -1]]

    def reference(self) -> Result | None:
        """By torchdiffeq's dopri8 in float64, which is told the knots."""
        field, knots = copy.deepcopy(self.field).double(), self.knots.double()
        path, along = Hermite.through(knots, self.xs.double()), Controlled(field)
        ys: Any = torchdiffeq.odeint(
            lambda t, y: along(t, y, path),
            self.y0.double(),
            self.ts.double(),
            method="dopri8",
            rtol=TIGHT,
            atol=TIGHT,
            options={"jump_t": knots[1:-1]},
        )
        loss(ys).backward()
        return Result(ys[-1].detach().cpu(), flat(p.grad for p in field.parameters()))
