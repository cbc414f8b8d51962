from __future__ import annotations

import io
import re

import pytest

from ndeflow.training import progress
from ndeflow.training.progress import ProgressBar, clock, fitted
from ndeflow.training.recording import MeterLogging
from tests.training import tiny_training as tiny


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the progress bar reads: two seconds pass between readings."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 2.0
        return self.now


@pytest.fixture
def written(tmp_path, monkeypatch):
    def run(stream: io.StringIO, epochs: int = 3, **settings) -> str:
        monkeypatch.setattr(progress, "time", Clock())
        trainer = tiny.make_trainer(tmp_path, epochs)
        recording = next(c for c in trainer.callbacks if isinstance(c, MeterLogging))
        trainer.callbacks.append(ProgressBar(recording, stream=stream, **settings))
        tiny.fit(trainer, tmp_path)
        return stream.getvalue()

    return run


def test_in_a_terminal_one_line_is_renewed(written, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = written(Terminal())
    lines = text.split("\r\x1b[K")[1:]
    assert len(lines) > 25
    assert text.count("\n") == 1 and text.endswith("\n")
    pattern = r"epoch 2/3  step 1\d  loss [\d.]+  evals/solve [\d.]+  \d:\d\d left  val/loss [\d.]+"
    assert sum(re.fullmatch(pattern, line) is not None for line in lines) >= 5
    assert any("validating 1/1" in line for line in lines)


def test_a_narrow_terminal_drops_whole_parts(written, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = written(Terminal()).rstrip("\n").split("\r\x1b[K")
    assert max(map(len, lines)) <= 39
    assert all(not re.search(r"(loss|solve)$", line) for line in lines)
    assert fitted(["epoch 1", "loss 2"], 15) == "epoch 1  loss 2"
    assert fitted(["epoch 1", "loss 2"], 14) == "epoch 1"
    assert fitted(["epoch 1"], 3) == "epo"


def test_in_a_file_lines_become_rare(written):
    lines = written(io.StringIO(), epochs=5).splitlines()
    assert all("\r" not in line and line.startswith("epoch") for line in lines)
    assert len(lines) == 5  # after 10, 20, 40, 80 seconds, and at the end
    assert re.search(r"  in \d+:\d\d", lines[-1])


def test_quiet_prints_nothing(written):
    assert written(Terminal(), quiet=True) == ""


def test_clock():
    assert [clock(s) for s in (0.4, 59.6, 3599, 3600, 36610)] == ["0:00", "1:00", "59:59", "1:00:00", "10:10:10"]
