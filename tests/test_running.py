"""One run from request to results: nothing that was trained is lost, whatever the settings are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ndeflow import request, running
from ndeflow.load import read_run
from tests.training.tiny_training import assert_equal

ONE = ("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "quiet=true", "run_dir=run")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Carries out a command line, of one epoch in the folder `run` where it does not say; its exit status."""
    monkeypatch.setenv("NDEFLOW_RUN_DIR", "")  # restored afterwards
    monkeypatch.setattr(running.gc, "freeze", lambda: None)
    monkeypatch.setattr(running.warnings, "showwarning", running.warnings.showwarning)  # restored afterwards
    monkeypatch.chdir(tmp_path)

    def carried_out(*words: str) -> int:
        if "resume=run" in words:
            return running.run(request.read(words))
        chosen = () if "data=files" in words else ("recipe=quickstart",)
        return running.run(request.read((*chosen, *ONE, *words)))

    return carried_out


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("never", ["trainer.check_val_every_n_epoch=25", "+trainer.limit_val_batches=0"])
def test_a_run_that_never_validates_keeps_its_last_weights(trained, tmp_path, capsys, never):
    assert trained("trainer.max_epochs=2", never) == 0
    found = read_run("run")
    assert found.checkpoint.name == "best.ckpt"
    assert torch.load(found.checkpoint, weights_only=True)["global_step"] == 2
    assert "on the test split (last weights)" in capsys.readouterr().out


def test_a_run_that_validates_says_that_its_weights_are_the_best(trained, capsys):
    assert trained() == 0
    assert "on the test split (best weights)" in capsys.readouterr().out


def test_references_that_fail_cost_nothing_but_themselves(trained, tmp_path, capsys, monkeypatch):
    def failing(data):
        raise ValueError("expected more days")

    monkeypatch.setattr("ndeflow.data.measured.Record.references", failing)
    assert trained() == 0
    found, shown = results(tmp_path / "run"), capsys.readouterr()
    assert "test/log_rmse" in found and not any(name.startswith("reference/") for name in found)
    for text in (shown.err, shown.out):
        assert "note: what other methods reach could not be found: expected more days" in text


def test_a_figure_that_cannot_be_drawn_is_a_note(trained, tmp_path, capsys, monkeypatch):
    def failing(*args, **options):
        raise RuntimeError("no such colour")

    monkeypatch.setattr("ndeflow.plots.predictions", failing)
    assert trained("log_every=1") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert {path.stem for path in (tmp_path / "run" / "plots").iterdir()} == {"learning_curves", "evaluations"}
    assert capsys.readouterr().err.strip() == "ndeflow: note: not all figures could be drawn: no such colour"


def test_a_run_without_a_step_is_an_evaluation(trained, tmp_path):
    assert trained() == 0
    for none in ("trainer.max_epochs=0", "trainer.max_steps=0", "+trainer.limit_train_batches=0"):
        folder = none.replace("=0", "").replace("+", "")
        assert trained(f"run_dir={folder}", "init_from=run", none) == 0
        found = results(tmp_path / folder)
        assert found["test/log_rmse"] == results(tmp_path / "run")["test/log_rmse"] and "train/nfe" not in found
        assert_equal(read_run(folder).weights, read_run("run").weights)


def test_what_training_cost_is_a_mean_over_steps():
    """Not over rows, of which the last may be of fewer steps, and some are of a validation alone."""
    rows = [
        {"step": 10.0, "train/learning_rate": 1.0, "train/nfe": 6.0, "time/seconds_per_step": 1.0},
        {"step": 11.0, "val/nfe": 100.0},
        {"step": 12.0, "train/learning_rate": 1.0, "train/nfe": 12.0, "time/seconds_per_step": math.nan},
    ]
    assert running.training_cost(rows) == {"train/nfe": 7.0, "train/seconds_per_step": 1.0}
    assert running.training_cost([]) == {}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["monitor=train/loss"], "expected monitor to be a metric of validation, such as val/loss, got train/loss"),
        (["monitor_mode=up"], "expected monitor_mode to be min or max, got up"),
        (["monitor=val/accuracy"], "expected monitor_mode=max for val/accuracy, which is better when larger, got min"),
    ],
)
def test_a_monitor_that_makes_no_sense_is_refused_before_the_run(trained, tmp_path, capsys, words, line):
    assert trained(*words) == 2
    assert capsys.readouterr().err.strip() == f"ndeflow: {line}" and not (tmp_path / "run").exists()


@pytest.mark.parametrize("patience", ["null", "3"])
def test_a_monitor_that_no_validation_reports_is_refused_with_those_that_are(trained, capsys, patience):
    assert trained("monitor=val/rsme", f"patience={patience}") == 1
    known = "val/log_rmse, val/loss, val/nfe, val/rmse, val/z/rmse"
    assert f"ndeflow: expected monitor to be one of {known}, got val/rsme" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(trained, tmp_path, capsys):
    def write(shift: float) -> None:
        rows = [f"{i},{t},{shift + math.sin(i + t)}" for i in range(12) for t in range(8)]
        (tmp_path / "my.csv").write_text("\n".join(["id,time,x", *rows]))

    write(0.0)
    words = ("data=files", "data.path=my.csv", "task=forecasting", "model=ode_forecaster")
    assert trained(*words) == 0
    write(1.0)
    assert trained("resume=run", "trainer.max_epochs=2") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expected the data that the run began with, got others (of another mean)" in line and "init_from=run" in line
    write(0.0)
    assert trained("resume=run", "trainer.max_epochs=2") == 0
