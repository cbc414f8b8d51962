"""A run whose field is compiled from some step on is the same run when it is stopped anywhere and resumed."""

from __future__ import annotations

import logging
import os
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from ndeflow import outcome, runs
from ndeflow.models import NeuralODE
from ndeflow.numerics import lowering
from ndeflow.numerics.accounts import account
from ndeflow.numerics.explicit import RungeKutta
from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.progress import ProgressBar
from ndeflow.training.recording import MeterLogging
from ndeflow.training.signals import Interrupted
from ndeflow.training.stopwatch import Stopwatch
from ndeflow.training.switching import Switching, candidates
from tests.training import tiny_training as tiny
from tests.training.test_progress import Terminal
from tests.training.test_resume import SignalAt

AFTER = 200  # evaluations


class Flow(NeuralODE):
    """The state after a unit of time."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(solver=RungeKutta(rtol=0.1, atol=0.1, compile_after=AFTER))
        self.net = nn.Sequential(nn.Linear(1, 4), part, nn.Tanh(), nn.Linear(4, 1))

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)

    def forward(self, batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.solve(batch, torch.tensor([0.0, 1.0])).ys[:, -1]


PARTS = {"plain": nn.Identity, "refused": lambda: nn.Sequential(nn.Dropout(0.01), nn.BatchNorm1d(4))}


def task(part: str = "plain") -> tiny.TinyTask:
    made = tiny.make_task()
    made.model = Flow(PARTS[part]())
    return made


def fit(run_dir, *extra, part="plain", epochs=3, **settings):
    """Train to the end; last.ckpt is of the last batch."""
    trainer = tiny.make_trainer(run_dir, epochs, *extra, every_seconds=0.0, **settings)
    return tiny.fit(trainer, run_dir, task=task(part))


@pytest.fixture(autouse=True, scope="module")
def visible():
    """Programs are not compiled, and are off by a little, so that a solve shows whether it went through them."""
    wrong = lambda graph: lambda xs: [x * (1 + 1e-5) for x in graph(*xs)]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "lower", wrong)
        yield


def state(run_dir) -> dict:
    return read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["ndeflow"]["fields"][0]


@pytest.fixture(params=list(PARTS), scope="module")
def whole(request, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    weights = fit(run_dir, part=request.param).state_dict()
    return request.param, (weights, tiny.reproducible(run_dir), tiny.best(run_dir)), state(run_dir)


def test_stopped_before_and_after_the_switch_a_run_ends_as_one_that_was_not(whole, tmp_path):
    part, expected, kept = whole
    cut, at = tmp_path / "cut", kept["steps"].get("model.dynamics", 20)
    stops = [("on_after_backward", at - 1), ("on_before_backward", at), ("on_validation_batch_start", at + 1)]
    for hook, step in stops:
        with pytest.raises(Interrupted):
            fit(cut, SignalAt(hook, step), part=part)
    weights = fit(cut, part=part).state_dict()
    tiny.assert_same_run(cut, weights, expected)
    assert state(cut) == kept


def test_the_table_and_the_checkpoint_say_from_where_on_it_is_compiled(whole, tmp_path):
    part, (_, rows, _), kept = whole
    mine = kept["accounts"]["model.dynamics"]
    assert mine["switched"] and AFTER <= mine["evaluations"] < AFTER + 40
    shown = [row["step"] for row in rows if "train/compiled" in row]
    if part != "plain":
        assert kept["steps"] == {} and shown == []
        return
    at = kept["steps"]["model.dynamics"]
    assert 5 < at < 20 and shown == [row["step"] for row in rows if "train/loss" in row and row["step"] > at]
    assert all(row["train/compiled"] == 1 for row in rows if "train/compiled" in row)


def test_a_run_repeated_in_the_same_process_switches_at_the_same_step(whole, tmp_path):
    part, expected, kept = whole
    tiny.assert_same_run(tmp_path, fit(tmp_path, part=part).state_dict(), expected)
    assert state(tmp_path) == kept


def test_a_checkpoint_without_accounts_can_be_resumed():
    made, switching = task(), Switching(Stopwatch())
    switching.on_load_checkpoint(pl.Trainer(logger=False, accelerator="cpu"), made, {})
    assert switching.results() == {} and account(made.model.dynamics).evaluations == 0


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


def test_the_summary_says_it_in_words(tmp_path):
    switching = Switching(Stopwatch())
    switching.steps = {"model.dynamics": 123456, "model.other": 200000}
    results = {"train/nfe": 20.0, **switching.results()}
    runs.write_json(tmp_path / "results.json", results)
    text = outcome.summary(tmp_path, {"about": None, "expect": None})
    assert "solves were compiled from step 123456 on" in text and "compiled_from_step" not in text


def test_compiled_code_lies_in_the_cache_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for before, after in (("/elsewhere", "/elsewhere"), (None, str(tmp_path / "ndeflow" / "inductor"))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before or "")
        if before is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        runs.keep_compiled()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == after
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    runs.keep_compiled()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_compiling_is_said_between_lines_of_progress(tmp_path):
    trainer, stream = tiny.make_trainer(tmp_path, 3), Terminal()
    recording = next(c for c in trainer.callbacks if isinstance(c, MeterLogging))
    trainer.callbacks.append(ProgressBar(recording, stream=stream))
    tiny.fit(trainer, tmp_path, task=task())
    lines = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if "ndeflow:" in line]
    assert re.fullmatch(r"ndeflow: Flow.field is being compiled: about half a minute once, then kept in \S+", lines[0])
    assert re.fullmatch(r"ndeflow: Flow.field was compiled in \d+ seconds", lines[1]) and len(lines) == 2
    assert not logging.getLogger("ndeflow").handlers
    recording = MeterLogging()
    ProgressBar(recording, stream=stream, quiet=True)._remarks.emit(logging.makeLogRecord({"msg": "hidden"}))
    assert "hidden" not in stream.getvalue()
