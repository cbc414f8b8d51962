"""A run whose field is compiled from some step on is the same run when it is stopped anywhere and resumed."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from ndeflow import outcome, running, runs
from ndeflow.models import NeuralODE
from ndeflow.numerics import compiled
from ndeflow.numerics.accounts import account
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.signals import Interrupted
from ndeflow.training.stopwatch import Stopwatch
from ndeflow.training.switching import Switching, candidates
from tests.training import tiny_training as tiny
from tests.training.test_resume import SignalAt

AFTER = 400  # evaluations


class Flow(NeuralODE):
    """The state after a unit of time."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(solver=RungeKutta(rtol=0.1, atol=0.1, compile_after=AFTER))
        self.net = nn.Sequential(nn.Linear(1, 4), part, nn.Tanh(), nn.Linear(4, 1))

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)

    def forward(self, batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.solve(batch, torch.tensor([0.0, 1.0])).ys[:, -1]


PARTS = {"plain": nn.Identity, "drawing": lambda: nn.Dropout(0.01), "counting": lambda: nn.BatchNorm1d(4)}


def task(part: str = "plain") -> tiny.TinyTask:
    made = tiny.make_task()
    made.model = Flow(PARTS[part]())
    return made


def fit(run_dir, *extra, part="plain", epochs=5, **settings):
    return tiny.fit(tiny.make_trainer(run_dir, epochs, *extra, **settings), run_dir, task=task(part))


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    """Programs are not compiled, and are off by a little, so that a solve shows whether it went through them."""
    wrong = lambda graph, inputs: lambda *xs: [x * (1 + 1e-5) for x in graph(*xs)]  # noqa: E731
    monkeypatch.setattr(compiled, "lower", wrong)


def state(run_dir) -> dict:
    return read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["ndeflow"]["fields"][0]


@pytest.fixture(params=list(PARTS))
def whole(request, tmp_path):
    run_dir = tmp_path / "whole"
    weights = fit(run_dir, part=request.param).state_dict()
    return request.param, (weights, tiny.reproducible(run_dir), tiny.best(run_dir)), state(run_dir)


def test_stopped_before_and_after_the_switch_a_run_ends_as_one_that_was_not(whole, tmp_path):
    part, expected, kept = whole
    cut, at = tmp_path / "cut", kept["steps"].get("model.dynamics", 20)
    stops = [("on_before_backward", 7), ("on_after_backward", at - 1), ("on_before_backward", at)]
    stops += [("on_validation_batch_start", at + 1), ("on_train_batch_start", at + 13)]
    for hook, step in stops:
        with pytest.raises(Interrupted):
            fit(cut, SignalAt(hook, step), part=part, every_seconds=0.0)
    weights = fit(cut, part=part).state_dict()
    tiny.assert_same_run(cut, weights, expected)
    assert state(cut) == kept


def test_the_table_and_the_checkpoint_say_from_where_on_it_is_compiled(whole, tmp_path):
    part, (_, rows, _), kept = whole
    mine = kept["accounts"]["model.dynamics"]
    assert mine["switched"] and AFTER <= mine["evaluations"] < AFTER + 40 and mine["rows"] == 4 * mine["evaluations"]
    shown = [row["step"] for row in rows if "train/compiled" in row]
    if part != "plain":
        assert kept["steps"] == {} and shown == []
        return
    at = kept["steps"]["model.dynamics"]
    assert 10 < at < 40 and shown == [row["step"] for row in rows if "train/loss" in row and row["step"] > at]
    assert all(row["train/compiled"] == 1 for row in rows if "train/compiled" in row)


def test_a_run_repeated_in_the_same_process_switches_at_the_same_step(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    expected = fit(a).state_dict()
    tiny.assert_same_run(b, fit(b).state_dict(), (expected, tiny.reproducible(a), tiny.best(a)))


def test_a_checkpoint_without_accounts_can_be_resumed():
    made, switching = task(), Switching(Stopwatch())
    account(made.model.dynamics).count(5, 4)
    switching.on_load_checkpoint(tiny.make_trainer, made, {}) if False else None
    assert account(made.model.dynamics).evaluations == 5


def test_fields_are_found_by_name():
    made = task()
    found = dict(candidates(made))
    assert found["model.dynamics"] is made.model.dynamics and found["model.net"] is made.model.net


def test_seconds_of_compiling_are_not_those_of_training():
    watch = Stopwatch()
    watch.start(())
    watch.step()
    watch.leave_out(5.0)
    assert watch.lap()[0] < -4
