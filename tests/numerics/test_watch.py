"""A survey is kept as long as nothing in it has changed, and keeps nothing alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from ndeflow.numerics.fingerprint import survey
from ndeflow.numerics.watch import Watch
from tests.numerics.test_fingerprint import STRUCTURE, net


def prepared() -> nn.Sequential:
    module = net()
    module[0].extra = nn.Parameter(torch.ones(3))
    module[1].gain, module[1].sizes = 1.0, [1, 2]
    return module


def reads(module) -> set:
    names = "gain", "sizes", "forward", "half", "type"
    return {(id(module), "shift"), *((id(module[1]), name) for name in names)}


def move(module):
    """Another storage with the same numbers."""
    module[0].weight.data = module[0].weight.data.clone()


class Gate(nn.Tanh):
    scale = 2.0
    shifts = [1.0]  # noqa: RUF012

    def forward(self, x):
        return super().forward(x) * self.scale + self.shifts[0]


@pytest.mark.parametrize("change", [
    lambda: setattr(Gate, "scale", 3.0),
    lambda: Gate.shifts.append(2.0),
    lambda: setattr(Gate, "forward", lambda self, x: x),
    lambda: delattr(Gate, "scale"),
])  # fmt: skip
def test_changes_of_classes_are_seen(change, monkeypatch):
    for name in ("scale", "shifts", "forward"):
        monkeypatch.setattr(Gate, name, list(Gate.shifts) if name == "shifts" else getattr(Gate, name))
    module, watch = nn.Sequential(Gate(), Gate()), Watch()
    module[1].scale = 5.0
    among = {(id(part), name) for part in module for name in ("scale", "shifts", "forward")}
    before = watch.look([module], among)
    assert watch.look([module], among) is before
    change()
    after = watch.look([module], among)
    assert after is not before and after.attributes != before.attributes


def hand_over(module):
    """The last parameter of one part becomes the first of the next: all names and tensors stay in their order."""
    extra, own = module[0]._parameters.pop("extra"), module[2]._parameters
    after = {"extra": extra, **own}
    own.clear()
    own.update(after)


ATTRIBUTES = {
    "number": lambda module: setattr(module[1], "gain", 2.0),
    "list": lambda module: module[1].sizes.append(3),
    "new": lambda module: setattr(module, "shift", 1.0),
    "method": lambda module: setattr(module[1], "forward", torch.relu),
    "as a method of all": lambda module: setattr(module[1], "half", 0.5),
    "as another": lambda module: setattr(module[1], "type", "soft"),
    "gone": lambda module: delattr(module[1], "gain"),
    "storage": move,
    "buffer": lambda module: module[2].register_buffer("scale", torch.ones(2)),
    "name": lambda module: setattr(module[0], "other", module[0]._parameters.pop("extra")),
    "added": lambda module: module.append(nn.Tanh()),
    "removed": lambda module: module.pop(2),
    "handed over": hand_over,
}


@pytest.mark.parametrize("change", [*STRUCTURE.values(), *ATTRIBUTES.values()], ids=[*STRUCTURE, *ATTRIBUTES])
def test_changes_are_seen(change):
    module, watch = prepared(), Watch()
    among = reads(module)
    before = watch.look([module], among)
    change(module)
    after = watch.look([module], among)
    now = survey([module], among)
    assert after is not before and (after.structure, after.attributes) == (now.structure, now.attributes)
    assert list(map(id, after.tensors)) == list(map(id, now.tensors))


def test_new_values_and_what_was_not_read_do_not_matter():
    module, watch = prepared(), Watch()
    among = reads(module)
    before = watch.look([module], among)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    module[0].weight.grad = torch.ones(3, 2)
    module[1].calls, module[1].sizes = 7, [1, 2]
    assert watch.look([module], among) is before
    assert watch.look([module, module[1]], among) is not before


def test_hooks_that_are_gone_are_not_remembered():
    module, watch = prepared(), Watch()
    among = reads(module)
    before = watch.look([module], among)
    hook = module[1].register_forward_hook(lambda *_: None)
    hooked = watch.look([module], among)
    hook.remove()
    after = watch.look([module], among)
    assert hooked.structure != before.structure and after.structure == before.structure


def test_more_attributes_to_look_at():
    module, watch = prepared(), Watch()
    before = watch.look([module], set())
    assert not before.attributes and watch.look([module], reads(module)).attributes


def test_nothing_is_kept_alive():
    module, watch = prepared(), Watch()
    watch.look([module], reads(module))
    parts = [weakref.ref(module), weakref.ref(module[1])]
    del module
    gc.collect()
    assert all(part() is None for part in parts)
