"""What functions read beside their arguments is found and watched, as far as it may change."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ndeflow.numerics.compilation import account
from ndeflow.numerics.outside import outside
from ndeflow.numerics.solve import solve
from tests.numerics.compiling import OFF, ON, TS
from tests.problems import apart, start

GAIN = 1.0
LISTED = [1.0]
CONFIG = SimpleNamespace(gain=1.0)
UNREAD = 1.0
shift = 0.0  # the name of an attribute too
calls = 0
settings: Any = ModuleType("settings_of_a_user")


class Options:
    gain = 1.0


def helper(y):
    return GAIN * y


def listed(y):
    return sum(LISTED) * y


def decorated(function):
    @wraps(function)
    def call(*arguments):
        return function(*arguments)

    return call


class Field(nn.Module):
    """A field that reads, by one of these functions, more than its attributes."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.lin, self.function, self.shift = nn.Linear(2, 2, dtype=torch.float64), function, 0.0

    def forward(self, t, y):
        return self.function(torch.tanh(self.lin(y))) + self.shift


class Base:
    offset = 1.0

    def apply(self, y):
        return GAIN * y


class Derived(Base):
    pass


class Owner:
    gain = 1.0
    field: nn.Module

    def rate(self, y):
        return self.gain * y


def scaled(owner, y):
    return owner.gain * y


TOOL = Derived()
ACTIVATION = nn.Tanh()
TABLE = {"gain": 1.0, "step": 0}


def names(*functions) -> set[str]:
    return {name for _, name in outside(functions)}


def values(*functions) -> dict[str, Any]:
    return {name: x.value() for (_, name), x in outside(functions).items() if isinstance(x.value(), (int, float))}


def test_names_are_those_of_variables_that_are_read():
    assert names(helper) == {"GAIN"}
    assert names(Field.forward) == set()  # `shift` is an attribute there
    assert names(lambda y: [helper(z) + shift for z in y]) == {"helper", "GAIN", "shift"}
    assert names(partial(helper, 1.0), staticmethod(listed), decorated(helper)) == {"GAIN", "LISTED", "function"}
    assert names(property(lambda self: CONFIG.gain), 3.0, None, nn.Linear, torch.tanh) == {"CONFIG.gain"}


def test_of_what_is_reached_what_is_named():
    inner: Any = ModuleType("settings_of_a_user.inner")
    inner.gain, settings.inner, settings.other, settings.gain = 2.0, inner, 3.0, 4.0
    assert values(lambda y: settings.inner.gain * y) == {"settings.inner.gain": 2.0, "settings.gain": 4.0}
    assert values(lambda y: Options.gain * y * torch.pi) == {"Options.gain": 1.0}
    assert values(lambda y: Derived.offset * TABLE["gain"]) == {"Derived.offset": 1.0, "TABLE.gain": 1.0}
    assert "GAIN" in values(lambda y: TOOL.apply(y)) and "GAIN" in values(lambda y: Derived().apply(y))


def test_variables_of_functions_around():
    gain = 1.0

    def inner(y):
        return gain * y

    (variable,) = outside([inner]).values()
    assert variable.value() == 1.0
    gain = 2.0
    assert variable.value() == 2.0


def test_odd_functions_do_no_harm():
    def empty(y):
        return late * y

    if TABLE["step"]:
        late = 1.0
    source: dict[str, Any] = {}
    exec("def made(y): return other * y", source)
    odd = [empty, source["made"], len, torch.tanh, torch.sin, nn.Tanh(), Options, 1.0, lambda: (yield GAIN)]
    assert names(*odd) == {"GAIN"}


def patched(name, value):
    return lambda patch: patch.setattr(sys.modules[__name__], name, value)


CHANGES = {
    "global": (helper, patched("GAIN", 2.0)),
    "function": (lambda y: helper(y), patched("helper", lambda y: 3.0 * y)),
    "list": (listed, patched("LISTED", [1.0, 2.0])),
    "object": (lambda y: CONFIG.gain * y, lambda patch: patch.setattr(CONFIG, "gain", 2.0)),
    "class": (lambda y: Options.gain * y, lambda patch: patch.setattr(Options, "gain", 2.0)),
    "base": (lambda y: Derived.offset * y, lambda patch: patch.setattr(Base, "offset", 2.0)),
    "method": (lambda y: TOOL.apply(y), lambda patch: patch.setattr(Base, "apply", lambda self, y: 3.0 * y)),
    "module": (lambda y: settings.gain * y, lambda patch: patch.setattr(settings, "gain", 2.0)),
    "key": (lambda y: TABLE["gain"] * y, lambda patch: patch.setitem(TABLE, "gain", 2.0)),
    "activation": (lambda y: ACTIVATION(y), patched("ACTIVATION", nn.ReLU())),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_nothing_of_it_goes_stale(name, monkeypatch):
    monkeypatch.setattr(settings, "gain", 1.0, raising=False)
    function, change = CHANGES[name]
    field = Field(function)
    first = solve(field, start(), TS, solver=ON).ys
    solve(field, start(), TS, solver=ON)
    assert len(account(field).versions.known) == 1
    change(monkeypatch)
    second = solve(field, start(), TS, solver=ON).ys
    assert apart(second, solve(field, start(), TS, solver=OFF).ys) < 1e-14 < apart(first, second)
    assert len(account(field).versions.known) == 2


@pytest.mark.usefixtures("traced")
@torch.no_grad()
def test_what_is_not_read_and_what_the_field_counts_makes_no_new_programs(monkeypatch):
    def counted(y):
        global calls
        calls += 1
        return TABLE["gain"] * CONFIG.gain * y

    field = Field(counted)
    for n in range(10):
        monkeypatch.setattr(sys.modules[__name__], "UNREAD", float(n))
        monkeypatch.setattr(sys.modules[__name__], "shift", float(n))
        monkeypatch.setitem(TABLE, "step", n)
        monkeypatch.setattr(CONFIG, "step", n, raising=False)
        solve(field, start(), TS, solver=ON)
    assert calls and len(account(field).versions.known) == 1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("keep", [
    lambda field, owner: lambda y: y * (1.0 if field.training else 2.0),
    lambda field, owner: lambda y: y * owner.gain,
    lambda field, owner: owner.rate,
    lambda field, owner: partial(scaled, owner),
])  # fmt: skip
def test_a_field_whose_function_keeps_it_is_free_when_nobody_needs_it(keep):
    def solved() -> weakref.ref[Field]:
        field, owner = Field(helper), Owner()
        field.function, owner.field = keep(field, owner), field
        with torch.no_grad():
            solve(field, start(), TS, solver=ON)
        return weakref.ref(field)

    found = solved()
    gc.collect()
    assert found() is None
