"""Every combination of solver, adjoint and options: solved with the right gradient, or refused with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from ndeflow.numerics.adaptive_stochastic import AdaptiveStochastic
from ndeflow.numerics.adjoint import Checkpointed, Direct
from ndeflow.numerics.backends import TorchDiffEq, TorchSDE
from ndeflow.numerics.backsolve import Backsolve
from ndeflow.numerics.brownian import Brownian
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import SDE
from ndeflow.numerics.fixed import FixedRungeKutta
from ndeflow.numerics.reversible import Reversible
from ndeflow.numerics.solve import solve
from ndeflow.numerics.stochastic import Stochastic
from tests.numerics.compiling import Small, tanh
from tests.problems import start

pytestmark = pytest.mark.usefixtures("traced")

TS = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
ADJOINTS = (Direct(), Checkpointed(), Backsolve(), Reversible())


class Noisy(SDE):
    def __init__(self) -> None:
        super().__init__(noise_type="diagonal", sde_type="ito", noise_size=2)
        self.lin = Small(tanh).lin

    def drift(self, t, y):
        return tanh(self, t, y)

    def diffusion(self, t, y):
        return 0.1 * torch.sigmoid(y)


ODE, DIFFUSION = Small(tanh), Noisy()  # one field for all cells: each program is made once
FIELDS = {"ode": ODE, "sde": DIFFUSION}


def cells() -> Iterator[Any]:
    """(name, solver made when called, adjoint, field)."""
    tight = {"method": "bosh3", "rtol": 1e-6, "atol": 1e-6}
    for compile, batching, failure in product(("off", "on"), ("shared", "per_sample"), ("raise", "mask")):
        options = {"compile": compile, "batching": batching, "on_failure": failure}
        yield f"RungeKutta-{compile}-{batching}-{failure}", lambda o=options: RungeKutta(**tight, **o)
        yield f"AdaptiveStochastic-{compile}-{batching}-{failure}", lambda o=options: AdaptiveStochastic(**o)
    for failure in ("raise", "mask"):
        yield f"FixedRungeKutta-{failure}", lambda f=failure: FixedRungeKutta("rk4", 40, on_failure=f)
        yield f"Stochastic-{failure}", lambda f=failure: Stochastic("euler", 4, on_failure=f)
    yield "TorchDiffEq", lambda: TorchDiffEq(rtol=1e-7, atol=1e-7)
    yield "TorchSDE", lambda: TorchSDE("euler", 32)


CELLS = dict(cells())


def gradients(field: nn.Module, solver: Any, adjoint: Any) -> list[torch.Tensor]:
    y0, noise = start().requires_grad_(), Brownian(3) if isinstance(field, SDE) else None
    ys = solve(field, y0, TS, solver=solver, adjoint=adjoint, noise=noise).ys
    return [ys.detach(), *torch.autograd.grad(ys.sin().sum(), [y0, *field.parameters()])]


def wanted(field: nn.Module, name: str) -> list[torch.Tensor]:
    if not isinstance(field, SDE):
        return gradients(field, RungeKutta("dopri5", 1e-10, 1e-10, compile="off"), Direct())
    return gradients(field, CELLS[name](), Direct())


def supported(name: str, adjoint: Any, kind: str) -> bool:
    """What the table of supported combinations says."""
    how = type(adjoint).__name__
    if "shared-mask" in name or kind != (
        "sde" if name.startswith(("Stochastic", "AdaptiveStochastic", "TorchSDE")) else "ode"
    ):
        return False
    if name in ("TorchDiffEq", "TorchSDE"):
        return how in ("Direct", "Backsolve")
    if how == "Backsolve":
        return kind == "ode" and "per_sample" not in name and "-on-" not in name and "mask" not in name
    if how == "Reversible":
        return kind == "ode" and "per_sample" not in name and "-on-" not in name
    return True


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("name", CELLS)
def test_cell(name, adjoint, kind):
    field = FIELDS[kind]
    if supported(name, adjoint, kind):
        bound = 1e-4 if kind == "ode" else 1e-10
        if name == "TorchSDE" and isinstance(adjoint, Backsolve):
            bound = 5e-2  # its backward solve is as coarse as the forward one
        for a, b in zip(wanted(field, name), gradients(field, CELLS[name](), adjoint), strict=True):
            assert torch.allclose(a, b, rtol=bound, atol=bound)
        return
    with pytest.raises(ValueError, match=r"expected .* got .*") as refusal:
        gradients(field, CELLS[name](), adjoint)
    assert any(word in str(refusal.value) for word in ("; use", ", or ", "; leave", "use "))
