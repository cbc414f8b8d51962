"""Every built-in field: shapes, both kinds of time, gradients, copies."""

from __future__ import annotations

import copy
import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

import ndeflow.fields
from ndeflow.fields.cde import CDEField
from ndeflow.fields.concat_squash import ConcatSquash, ConcatSquashField
from ndeflow.fields.known import SIR, DampedPendulum, LotkaVolterra, OrnsteinUhlenbeck
from ndeflow.fields.moments import Moments
from ndeflow.fields.ode import MLPField
from ndeflow.fields.sde import DiagonalSDE, ScalarSDE
from ndeflow.fields.timed import TimedField
from ndeflow.numerics.field import SDE

ROWS = 4
FIELDS: dict[type[nn.Module], list[tuple[Callable[[], nn.Module], int, int]]] = {  # makers, size of y, inputs
    ConcatSquash: [(lambda: ConcatSquash(3, 3), 3, 0)],
    ConcatSquashField: [(lambda: ConcatSquashField(3, width=8), 3, 0), (lambda: ConcatSquashField(3, depth=0), 3, 0)],
    TimedField: [(lambda: TimedField(3, width=8), 3, 0)],
    MLPField: [
        (lambda: MLPField(3), 3, 0),
        (lambda: MLPField(3, inputs=2, bounded=True), 3, 2),
        (lambda: MLPField(3, time=False, depth=1, width=8), 3, 0),
    ],
    CDEField: [(lambda: CDEField(3, 2), 3, 0)],
    DiagonalSDE: [(lambda: DiagonalSDE(3), 3, 0), (lambda: DiagonalSDE(3, inputs=2, scale=0.5), 3, 2)],
    ScalarSDE: [(ScalarSDE, 1, 0), (lambda: ScalarSDE(drift_width=0, diffusion_width=0), 1, 0)],
    Moments: [(lambda: Moments(ScalarSDE()), 2, 0)],
    LotkaVolterra: [(LotkaVolterra, 2, 0)],
    SIR: [(lambda: SIR(763), 2, 0)],
    DampedPendulum: [(DampedPendulum, 2, 0)],
    OrnsteinUhlenbeck: [(lambda: OrnsteinUhlenbeck(3, rate=2.0), 3, 0)],
}
CASES = pytest.mark.parametrize(
    ("make", "size", "inputs"), [pytest.param(*case, id=cls.__name__) for cls in FIELDS for case in FIELDS[cls]]
)


def rates(field: nn.Module, t: Tensor, y: Tensor, *x: Tensor) -> list[Tensor]:
    """All that a field evaluates to."""
    if isinstance(field, SDE):
        return [field.drift(t, y, *x), field.diffusion(t, y)]
    return [field(t, y, *x)]


def point(size: int, inputs: int) -> list[Tensor]:
    """A positive state, which every equation accepts, and the field's input."""
    return [torch.rand(ROWS, size) + 0.5, *[torch.randn(ROWS, inputs)] * (inputs > 0)]


def test_every_field_of_the_package_is_tested_here():
    modules = [
        import_module(f"ndeflow.fields.{module.name}") for module in pkgutil.iter_modules(ndeflow.fields.__path__)
    ]
    found = {
        cls
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }
    assert found == set(FIELDS)


@CASES
def test_a_shared_time_is_the_same_as_one_a_row(make, size, inputs):
    field, args = make(), point(size, inputs)
    shared = rates(field, torch.tensor(0.7), *args)
    own = rates(field, torch.full((ROWS, 1), 0.7), *args)
    for a, b in zip(shared, own, strict=True):
        assert a.shape[:2] == (ROWS, size)
        torch.testing.assert_close(a, b)


@CASES
def test_rows_do_not_see_each_other(make, size, inputs):
    field, args, t = make(), point(size, inputs), torch.rand(ROWS, 1)
    whole = rates(field, t, *args)
    single = rates(field, t[2:3], *[x[2:3] for x in args])
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a[2:3], b)


@CASES
def test_every_parameter_gets_a_gradient(make, size, inputs):
    field, args = make(), point(size, inputs)
    sum(rate.square().sum() for rate in rates(field, torch.tensor(0.7), *args)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in field.parameters())


@CASES
def test_double_precision_and_copies(make, size, inputs):
    field = make()
    args = [x.double() for x in point(size, inputs)]
    for rate in rates(copy.deepcopy(field).double(), torch.tensor(0.7), *args):
        assert rate.dtype == torch.float64
