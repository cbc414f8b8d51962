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
from ndeflow.numerics.outside import outside, value_at
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


def names(*functions) -> set[str]:
    return {name for _, name in outside(functions)}


def test_names_are_those_of_variables_that_are_read():
    assert names(helper) == {"GAIN"}
    assert names(Field.forward) == set()  # `shift` is an attribute there
    assert names(lambda y: [helper(z) + shift for z in y]) == {"helper", "GAIN", "shift"}
    assert names(partial(helper, 1.0), staticmethod(listed), decorated(helper)) == {"GAIN", "LISTED", "function"}
    assert names(property(lambda self: CONFIG.gain), 3.0, None, nn.Linear, torch.tanh) == {"CONFIG"}


def test_of_modules_and_classes_what_may_be_meant():
    inner: Any = ModuleType("settings_of_a_user.inner")
    inner.gain, settings.inner, settings.other = 2.0, inner, 3.0
    found = outside([lambda y: settings.inner.gain * Options.gain * y * torch.pi])
    read = sorted((name, value_at(place)) for (_, name), place in found.items() if name != "Options")
    assert read == [("gain", 1.0), ("gain", 2.0)]


def test_variables_of_functions_around():
    gain = 1.0

    def inner(y):
        return gain * y

    found = outside([inner])
    assert [value_at(place) for place in found.values()] == [1.0]
    gain = 2.0
    assert [value_at(place) for place in found.values()] == [2.0]


CHANGES = {
    "global": (helper, lambda patch: patch.setattr(sys.modules[__name__], "GAIN", 2.0)),
    "function": (lambda y: helper(y), lambda patch: patch.setattr(sys.modules[__name__], "helper", lambda y: 3.0 * y)),
    "list": (listed, lambda patch: patch.setattr(sys.modules[__name__], "LISTED", [1.0, 2.0])),
    "within": (lambda y: CONFIG.gain * y, lambda patch: patch.setattr(CONFIG, "gain", 2.0)),
    "class": (lambda y: Options.gain * y, lambda patch: patch.setattr(Options, "gain", 2.0)),
    "module": (lambda y: settings.gain * y, lambda patch: patch.setattr(settings, "gain", 2.0)),
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
        return y

    field = Field(counted)
    for n in range(10):
        monkeypatch.setattr(sys.modules[__name__], "UNREAD", float(n))
        monkeypatch.setattr(sys.modules[__name__], "shift", float(n))
        solve(field, start(), TS, solver=ON)
    assert calls and len(account(field).versions.known) == 1


@pytest.mark.usefixtures("traced")
def test_a_field_whose_function_keeps_it_is_free_when_nobody_needs_it():
    def solved() -> weakref.ref[Field]:
        field = Field(helper)
        field.function = lambda y: y * (1.0 if field.training else 2.0)
        solve(field, start(), TS, solver=ON).ys.sum().backward()
        return weakref.ref(field)

    found = solved()
    gc.collect()
    assert found() is None
