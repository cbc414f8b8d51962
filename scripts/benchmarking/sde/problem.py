"""A stochastic differential equation, one step of it by each method, and its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ndeflow
from benchmarking.cases import SDE
from benchmarking.problem import Hidden, Problem, Result, flat, loss
from ndeflow import Brownian, Checkpointed, Stochastic

SEED = 0  # of the noise of the reference
MOST = 10_000  # steps of a reference


class Field(ndeflow.SDE):
    """dy = MLP(y) dt + sigmoid(MLP(y)) dW."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=dim)
        self.drifting, self.spreading = Hidden(dim, width, dim), Hidden(dim, width, dim)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drifting(t, y)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.spreading(t, y).sigmoid()


class SDEProblem(Problem[SDE]):
    """ts: start and end."""

    field: Field

    def __init__(self, case: SDE, device: torch.device) -> None:
        super().__init__(case, device)
        self.field = Field(case.dim, case.width).to(device)
        self.y0 = torch.randn(case.batch, case.dim).to(device)
        self.ts = torch.tensor([0.0, case.end], device=device)

    @property
    def evaluated(self) -> Hidden:
        return self.field.drifting

    @property
    def dt(self) -> float:
        return self.case.end / self.case.steps

    def reference(self) -> Result | None:
        """By ndeflow, uncompiled, with the noise of `SEED`."""
        if self.case.steps > MOST:
            return None
        field, solver = copy.deepcopy(self.field).double(), Stochastic(self.case.method, self.case.steps, compile="off")
        given = {"solver": solver, "adjoint": Checkpointed(), "noise": Brownian(SEED)}
        ys = ndeflow.solve(field, self.y0.double(), self.ts.double(), **given).ys
        loss(ys).backward()
        return Result(ys[:, -1].detach().cpu(), flat(p.grad for p in field.parameters()))


def euler(drift: Callable[[Any], Any], diffusion: Callable[[Any], Any], y: Any, dt: float, dw: Any) -> Any:
    """Euler-Maruyama, of torch's and JAX's arrays."""
    return y + drift(y) * dt + diffusion(y) * dw


def milstein(drift: Callable[[Any], Any], diffusion: Callable[[Any], Any], y: Any, dt: float, dw: Any) -> Any:
    """Derivative-free Milstein for Itô's integral, of torch's and JAX's arrays."""
    g, root = diffusion(y), dt**0.5
    euler = y + drift(y) * dt
    return euler + g * dw + (diffusion(euler + g * root) - g) * ((dw * dw - dt) / (2 * root))


METHODS = {"euler": euler, "milstein": milstein}
