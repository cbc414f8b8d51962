"""scripts/overhead.py: a run, a Trainer alone and their bare loops do the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
QUICK = ["solver=euler", "trainer.check_val_every_n_epoch=5", "quiet=true"]


@pytest.fixture
def overhead(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import overhead

    return overhead


def test_a_run_a_trainer_and_bare_loops_end_with_the_same_weights(overhead, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--steps=15", "--runs=1", *QUICK])
    assert overhead.main() == 0
    shown = capsys.readouterr().out
    assert "quickstart: 1 runs of 15 steps" in shown and "weights of run, Trainer and bare loops: identical" in shown
    run, bare, outside = (float(shown.split(name)[1].split()[0]) for name in ("\nrun ", "bare loop ", "difference "))
    assert outside == pytest.approx(run - bare, abs=0.011)


def test_what_is_too_much_is_an_exit_status(overhead, monkeypatch):
    times = overhead.Times(overhead.Moment(3.0, 2.0), overhead.Moment(2.0, 1.5))
    result = overhead.Result(times, times, 0.4, True)
    monkeypatch.setattr(overhead, "measured", lambda words, steps: result)
    for most, status in (("0.6", 0), ("0.4", 1)):
        monkeypatch.setattr(sys, "argv", ["overhead.py", "--most", most])
        assert overhead.main() == status
