"""What a traced graph has baked in: seen when it changes, and not when it does not matter."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from ndeflow.numerics.fingerprint import Versions, noted, picture, survey


@dataclass(frozen=True)
class Options:
    gain: float


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def test_tensors_are_parameters_then_buffers_each_once():
    module = net()
    module[2].register_buffer("scale", torch.ones(2))
    module[0].again = module[2]
    module[0].register_parameter("tied", module[2].bias)
    wanted = [*module.parameters(), module[2].scale]
    assert {id(x) for x in survey([module]).tensors} == {id(x) for x in wanted}
    assert survey([module, module]).tensors[-1] is module[2].scale


def test_tensors_are_in_the_order_of_a_module_list():
    modules = [net(), net(), nn.BatchNorm1d(2)]
    together = nn.ModuleList(modules)
    wanted = [*together.parameters(), *together.buffers()]
    assert list(map(id, survey(modules).tensors)) == list(map(id, wanted))


def rename(module):
    module[1] = nn.ReLU()


def tie(module):
    module[0].bias = module[0].extra


STRUCTURE = {
    "part": rename,
    "hook": lambda module: module[0].register_forward_hook(lambda *_: None),
    "frozen": lambda module: module[0].weight.requires_grad_(False),
    "shape": lambda module: setattr(module[0], "weight", nn.Parameter(torch.ones(3, 4))),
    "dtype": lambda module: module[2].double(),
    "tied": tie,
}


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
def test_structure_changes(change):
    module = net()
    module[0].extra = nn.Parameter(torch.ones(3))
    before = survey([module]).structure
    assert survey([module]).structure == before
    change(module)
    assert survey([module]).structure != before


def test_values_of_tensors_change_nothing():
    module = net()
    before = survey([module])
    with torch.no_grad():
        module[0].weight.mul_(2)
    module[0].bias = nn.Parameter(torch.zeros(3))
    module.load_state_dict(net().state_dict())
    after = survey([module])
    assert after.structure == before.structure and after.attributes == before.attributes


def changed(value, change) -> bool:
    before = picture(value)
    assert picture(value) == before
    return picture(change(value) or value) != before


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (0.5, lambda x: 0.6),
        ("relu", lambda x: "tanh"),
        (1, lambda x: True),
        (numpy.float64(2), lambda x: numpy.float64(3)),
        ([1, [2, 3]], lambda x: x[1].append(4)),
        ({"a": 1}, lambda x: x.update(a=2)),
        ({1, 2}, lambda x: x.add(3)),
        (numpy.ones(2), lambda x: x.fill(2)),
        (Options(1.0), lambda x: Options(2.0)),
        (SimpleNamespace(gain=1.0), lambda x: setattr(x, "gain", 2.0)),
        (SimpleNamespace(inner=SimpleNamespace(gains=[1.0])), lambda x: setattr(x.inner, "gains", [2.0])),
        ({"a": {"b": {"c": 1.0}}}, lambda x: x["a"]["b"].update(c=2.0)),
        (deque([1.0]), lambda x: x.append(2.0)),
        (Slotted(), lambda x: setattr(x, "gain", 2.0)),
        (torch.tanh, lambda x: torch.relu),
        (nn.Tanh, lambda x: nn.ReLU),
        ([nn.Dropout()], lambda x: x[0].eval()),
        (torch.float32, lambda x: torch.float64),
    ],
)
def test_pictures_show_what_changes(value, change):
    assert changed(value, change)


def test_equal_values_have_equal_pictures():
    for make in (lambda: [1, (2.0, "a")], lambda: Options(2.0), lambda: {"a": {1}}, lambda: torch.ones(2)):
        assert picture(make()) == picture(make())


def test_pictures_of_what_holds_itself_end():
    value = SimpleNamespace(gain=1.0)
    value.own = [value, {"again": value}]
    assert changed(value, lambda x: setattr(x, "gain", 2.0))


def test_reads_are_noted():
    module, reads = net(), set()
    module.gain = 2.0
    with noted(reads):
        module[1](torch.ones(2)) * module.gain
        assert not getattr(module, "absent", None)
    assert {(id(module), "gain"), (id(module), "absent")} <= reads
    before = len(reads)
    assert module.training and len(reads) == before and "__getattribute__" not in nn.Module.__dict__


def test_versions_are_told_apart_by_what_was_read():
    module, versions = net(), Versions()
    module.gain, module.seed, module.calls = 1.0, 0, 0

    def solve() -> int:
        now = survey([module], versions.reads)
        number = versions.number(now)
        before = survey([module])
        with noted(versions.reads):
            module.calls += module.gain
        versions.settle(number, before, survey([module], versions.reads))
        return number

    assert solve() == 0
    module.seed = 1
    module.eval()
    assert solve() == solve() == 0
    module.gain = 2.0
    assert solve() == 1 and versions.changing() == "gain"
    module.gain = 1.0
    assert solve() == 0
    module[1] = nn.ReLU()
    assert solve() == 2
