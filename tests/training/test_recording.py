from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.recording import MeterLogging
from ndeflow.training.stopwatch import Stopwatch
from ndeflow.training.table import read_table
from tests.training import tiny_training as tiny


class Watch(Callback):
    """Gradient norms and learning rates, step by step, the plain way."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        squares = [p.grad.double().square().sum() for p in pl_module.parameters()]
        self.norms.append(torch.stack(squares).sum().sqrt().item())
        self.rates.append(optimizer.param_groups[0]["lr"])


def run(tmp_path, *extra: Callback, **settings: Any) -> list[dict[str, float]]:
    tiny.fit(tiny.make_trainer(tmp_path, 2, *extra, **settings), tmp_path)
    return read_table(tmp_path / "metrics.csv")


def test_rows_hold_means_over_the_steps_between_them(tmp_path):
    watch = Watch()
    rows = run(tmp_path, watch)
    assert [row["step"] for row in rows] == [7, 10, 14, 20]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]
    assert rows[0]["train/nfe"] == 3.0  # mean of 0 ... 6
    for row, window in zip((rows[0], rows[2], rows[3]), (slice(0, 7), slice(7, 14), slice(14, 20)), strict=True):
        norms = watch.norms[window]
        assert row["train/gradient_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-6)
        assert row["train/learning_rate"] == watch.rates[window][-1]
        assert row["train/worst_error"] >= row["train/loss"]
        assert row["time/seconds_per_step"] > 0
        assert 0 < row["time/overhead"] < 1
        assert row["time/seconds_outside"] == row["time/overhead"] * row["time/seconds_per_step"]
    assert set(rows[1]) == {"step", "epoch", "val/loss"}
    assert "val/loss" in rows[3]  # step 20: the end of training and a validation share a row


def test_accumulated_steps_count_once(tmp_path):
    rows = run(tmp_path, accumulate_grad_batches=3)
    assert [row["step"] for row in rows] == [4, 7, 8]


def test_the_meter_is_in_every_full_checkpoint(tmp_path):
    run(tmp_path)
    full = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["ndeflow"]
    assert full["config"] == "tiny: true\n"
    assert len(full["meters"]) == 1
    assert "meters" not in read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["ndeflow"]


def test_overhead_is_what_lies_outside_the_optimizer_step():
    watch, weight = Stopwatch(), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    watch.start([optimizer])
    for _ in range(3):
        time.sleep(0.02)
        optimizer.step(lambda: time.sleep(0.06))
        watch.step()
        time.sleep(0.5)
        watch.resume()  # a pause is not counted
    seconds, overhead = watch.lap()
    assert 0.08 <= seconds < 0.2
    assert 0.1 < overhead < 0.5
    assert watch.overhead == overhead
    assert watch.seconds_outside == pytest.approx(overhead * seconds)


def test_a_meter_costs_little(tmp_path):
    """Adding, committing: less than a tenth of a millisecond a step, where each self.log call costs half of one."""
    from ndeflow.training.meter import Meter

    meter, value = Meter(), torch.tensor(1.0)
    values = {f"train/{i}": value for i in range(9)}
    laps = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(100):
            meter.add(values)
            meter.commit()
        laps.append((time.process_time() - start) / 100)
    assert min(laps) < 1e-4


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="expected every >= 1"):
        MeterLogging(every=0)
