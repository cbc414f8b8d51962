"""When `compile="auto"` switches a field, when it never does, and what is said of it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from ndeflow import solve
from ndeflow.numerics import compilation
from ndeflow.numerics.accounts import account, known
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.numerics.field import ByValue, Controlled

pytestmark = pytest.mark.usefixtures("traced")

TS = torch.tensor([0.0, 1.0])


class Net(nn.Module):
    def __init__(self, size: int = 2, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, size))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ndeflow"]


def spend(field: nn.Module, rows: int = 3, size: int = 2, solves: int = 3, after: int = 20, **options) -> None:
    """Solves that record gradients."""
    y0 = torch.ones(rows, size, dtype=options.pop("dtype", torch.float32))
    for _ in range(solves):
        solve(field, y0, TS, solver=RungeKutta(rtol=0.1, atol=0.1, compile_after=after, **options))


def test_a_field_is_switched_when_it_has_spent_enough_and_said_once(caplog):
    field = Net()
    with torch.no_grad():
        spend(field)
    assert account(field).evaluations == 0
    spend(field, solves=1, after=1)
    mine = account(field)
    spent = mine.evaluations
    assert spent > 1 and not mine.switched and said(caplog) == []
    spend(field, after=spent)
    assert mine.switched and mine.compiled and mine.evaluations == spent and mine.seconds > 0
    first, second = said(caplog)
    assert first.startswith("Net is being compiled: about half a minute once, then kept in ")
    assert second.startswith("Net was compiled in ")
    with torch.no_grad():
        spend(field)  # another setting, said already
    assert len(said(caplog)) == 2


def test_half_precision_is_not_compiled(caplog):
    field = Net().bfloat16()
    spend(field, solves=2, after=0, dtype=torch.bfloat16, batching="shared")
    assert "torch.bfloat16 compiled steps round differently" in caplog.text and not account(field).compiled


def test_other_devices_are_not_compiled_for():
    class Elsewhere:
        class problem:  # noqa: N801
            y0 = torch.empty(2, 2, device="meta")

    reason = compilation.unproven(Elsewhere)  # type: ignore[arg-type]
    assert reason is not None and "on meta is not known" in reason


def test_without_a_compiler_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(compilation, "_compiler", lambda: "no C++ compiler was found")
    field = Net()
    spend(field, solves=4)
    assert said(caplog) == ["Net is not compiled: no C++ compiler was found"]


class Drawing(Net):
    """Draws, and counts its evaluations in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.seen += 1
        return self.net(y) + 0.0 * torch.rand_like(y)


def test_finding_out_that_a_field_cannot_be_compiled_leaves_no_trace():
    field, found = Drawing(), []
    for after in (10**6, 0):
        torch.manual_seed(0)
        before = field.seen.item()
        spend(field, solves=1, after=after)
        found.append((field.seen.item() - before, torch.rand(()).item()))
    assert found[0] == found[1] and account(field).switched and not account(field).compiled


def test_accounts_are_plain_values_and_opened_by_a_solve():
    field = Net()
    assert known(field) is None
    spend(field, solves=1)
    mine, other = known(field), account(Net())
    assert mine is not None
    other.load_state_dict(mine.state_dict())
    assert other.state_dict() == mine.state_dict() and {type(v) for v in mine.state_dict().values()} == {int, bool}


def test_wrapped_fields_are_named_by_what_they_wrap():
    assert compilation._name(Controlled(Net())) == "Controlled(Net)"
    assert compilation._name(ByValue(Net())) == "ByValue(Net)"
    assert logging.getLogger("ndeflow").level == logging.NOTSET
