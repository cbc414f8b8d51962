"""The train command as a user meets it: lists, near matches, and a model of one's own from any folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ndeflow import resources, train
from ndeflow.load import load
from tests.training.tiny_training import assert_equal, best, reproducible

ROOT = Path(__file__).parents[1]
MINE = """
    import torch
    from torch import nn
    from ndeflow import DataModule, NeuralODE, Series

    class DampedPendulum(NeuralODE):
        def __init__(self, width: int = 16, **kwargs):
            super().__init__(**kwargs)
            self.friction = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

        def field(self, t, y):
            angle, speed = y.split(1, dim=-1)
            return torch.cat([speed, -9.81 * angle.sin() - self.friction(y)], dim=-1)

    class Swings(DataModule):
        def series(self):
            ts = torch.linspace(0, 1, 11).expand(40, 11)
            angle = torch.linspace(0.1, 1, 40)[:, None] * torch.exp(-0.2 * ts) * torch.cos(3.13 * ts)
            return Series(ts, torch.stack([angle, torch.gradient(angle, spacing=0.1, dim=1)[0]], dim=-1))
"""
RECIPE = """
    defaults: [override /task: forecasting]
    data: {_target_: mine.Swings}
    model: {_target_: mine.DampedPendulum, solver: "${solver}", adjoint: "${adjoint}"}
    trainer: {max_epochs: 4}
    optimizer: {lr: 0.01}
"""


@pytest.fixture
def folder(tmp_path):
    """A user's folder outside of the repository."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    (tmp_path / "recipes" / "pendulum.yaml").write_text(textwrap.dedent(RECIPE))
    return tmp_path


def command(folder, *words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("NDEFLOW_RUN_DIR", None)
    return subprocess.Popen([sys.executable, "-m", "ndeflow.train", *words], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def ended(process, status=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def test_compiled_code_is_kept_in_the_cache_folder_of_the_user(folder):
    code = "import os; from ndeflow import train; train.main(['recipe=pendulum', 'check=true']); "
    code += "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    shown = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == str(folder / "cache" / "ndeflow" / "inductor")


def test_without_a_recipe_all_are_listed(capsys):
    assert train.main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in resources.recipes())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipe=quickstrat"], "quickstart"),
        (["recipe=quickstart", "optimizer.lrr=1"], "optimizer.lr"),
        (["recipe=quickstart", "solver=dopri4"], "dopri5"),
        (["recipe=quickstart", "+trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
        (["recipe=quickstart", "seed=abc"], "seed"),
        (["recipe=quickstart", "model.width=abc"], "expected model.width to be a whole number, got 'abc'"),
        (["recipe=quickstart", "optimizer.lr=fast"], "expected optimizer.lr to be a number, got 'fast'"),
        (["recipe=quickstart", "optimizer.fused=maybe"], "expected optimizer.fused to be true or false or null, got"),
        (["recipe=quickstart", "seed=-1"], "expected seed to be a whole number, at least 0, got -1"),
        (["recipe=quickstart", "patience=-1"], "expected patience to be a number of validations, at least 0, got -1"),
        (["recipe=quickstart", "trainer.gradient_clip_val=-1"], "at least 0, got -1"),
        (["recipe=quickstart", "trainer.check_val_every_n_epoch=0"], "at least 1, got 0"),
        (["recipe=quickstart", "trainer.accumulate_grad_batches=0"], "at least 1, got 0"),
        (["recipe=quickstart", "+data.eval_batch_size=1.5"], "data.eval_batch_size to be a number of rows, got 1.5"),
        (["recipe=quickstart", "seed=1,2"], "-m"),
        (["recipe=quickstart", "references=vowel"], "name of a recipe, got 'vowel'; did you mean vowels?"),
        (["recipe=quickstart", "seed=${nope}"], "nope"),
        (["recipe=quickstart", "model=null"], "model"),
        (["recipe=quickstart", "trainer=gpu"], "trainer=cpu"),
        (["recipe=quickstart", "init_from=nowhere"], "nowhere"),
        (["resume=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_cure(words, line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available() and "trainer=gpu" in words:
        words = ["recipe=quickstart", "trainer=gpuu"]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert train.main(words) in (1, 2)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    shown = capsys.readouterr().err.strip()
    assert line in shown and len(shown.splitlines()) == 1 and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_a_model_and_data_of_ones_own_train_with_a_regularizer_from_any_folder(folder):
    out, _ = ended(command(folder, "recipe=pendulum", "regularizer=global_error", "run_dir=run"))
    run = folder / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["test/rmse"] < 0.5 and str(run.name) in out
    assert results["predict/nfe"] == results["test/nfe"] and "a prediction\n  a batch of 6 takes" in out
    columns = {name for row in reproducible(run) for name in row}
    assert {"train/loss", "train/penalty/global_error", "train/nfe", "train/worst_error", "val/loss"} <= columns
    assert {"learning_curves.png", "predictions.png"} <= {p.name for p in (run / "plots").iterdir()}
    with pytest.raises(ValueError, match=r'trust=\["mine'):
        load(run)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(folder):
    words = ["recipe=pendulum", "trainer.max_epochs=60", "log_every=3", "save_every=0.2"]
    ended(command(folder, *words, "run_dir=whole"))
    process = command(folder, *words, "run_dir=cut")
    while not (folder / "cut" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 143)
    assert "resume=cut" in err and len(err.strip().splitlines()) == 1
    ended(command(folder, "resume=cut"))
    assert reproducible(folder / "cut") == reproducible(folder / "whole")
    assert_equal(best(folder / "cut"), best(folder / "whole"))


def test_two_processes_train_together(folder):
    words = ["trainer=ddp", "+data.batch_size=8", "trainer.max_epochs=2", "quiet=true"]
    _, err = ended(command(folder, "recipe=pendulum", *words, "run_dir=run"))
    assert err == ""
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["test/rmse"] > 0
    assert json.loads((folder / "run" / "run.json").read_text())["status"] == "finished"


def test_a_learning_rate_that_breaks_training_is_said_in_one_line(folder):
    _, err = ended(command(folder, "recipe=pendulum", "optimizer.lr=1e12", "run_dir=run", "quiet=true"), 1)
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert (folder / "run" / "checkpoints" / "last.ckpt").exists()
