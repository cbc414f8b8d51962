"""A tiny training run with everything that a resume can get wrong: dropout, shuffling, schedule, early stopping.

As a command: RUN_DIR [EPOCHS [SECONDS_PER_STEP [DEVICES]]]: trains, or goes on from last.ckpt.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn

from ndeflow.numerics.seeds import mix
from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.clipping import Clipped
from ndeflow.training.interrupt import Interrupt
from ndeflow.training.meter import Meter
from ndeflow.training.randomness import Reseed
from ndeflow.training.recording import MeterLogging
from ndeflow.training.saver import AtomicIO, Saver, best_checkpoint
from ndeflow.training.signals import Interrupted, raise_on_signals
from ndeflow.training.silence import silence
from ndeflow.training.switching import Switching
from ndeflow.training.table import TIME, TableLogger, read_table

ROWS, SIZE = 40, 4  # ten batches an epoch
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.training.tiny_training"]  # to be run in ROOT


class TinyLoader:
    """Shuffled batches of fixed data, whose state is the position of the batch in work."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer, self.epoch, self.start = trainer, 0, 0
        self.x = torch.linspace(-2, 2, ROWS)[:, None]

    @property
    def sampler(self) -> TinyLoader:
        return self

    def __len__(self) -> int:
        return ROWS // SIZE // self.trainer.world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        size, rank, world = SIZE * self.trainer.world_size, self.trainer.global_rank, self.trainer.world_size
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(mix(7, self.epoch)))
        for i in range(start, len(self)):
            yield self.x[order[i * size : (i + 1) * size][rank::world]]

    def state_dict(self) -> dict[str, int]:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return {"position": progress.current.processed % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["position"]


class TinyTask(Clipped):
    """Regression of the sine, with dropout."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.meter, self.pause = Meter(), pause

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        loss = (self.model(batch) - batch.sin()).square().mean()
        self.meter.add({"train/loss": loss, "train/nfe": float(self.global_step % 7)}, {"train/worst_error": loss})
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(self.pause)
        loss = (self.model(batch) - batch.sin()).square().mean()
        self.log("val/loss", loss, logger=False, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


def make_task(pause: float = 0.0) -> TinyTask:
    torch.manual_seed(3)
    return TinyTask(pause)


def make_trainer(
    run_dir: Path, epochs: int = 5, *extra: Callback, every_seconds: float = 60.0, **settings: Any
) -> pl.Trainer:
    """The callbacks in the order in which a run has them."""
    silence()
    saver = Saver(run_dir / "checkpoints", every_seconds)
    recording = MeterLogging(every=7)
    callbacks: list[Callback] = [Reseed(0), Switching(recording.watch), recording, saver, Interrupt(saver)]
    stopping = EarlyStopping("val/loss", patience=3, check_on_train_epoch_end=False)
    defaults: dict[str, Any] = dict(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        plugins=[AtomicIO({"config": "tiny: true\n"})],
        logger=[TableLogger(run_dir / "metrics.csv")],
        callbacks=[*callbacks, *extra, stopping, best_checkpoint(run_dir / "checkpoints")],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    return pl.Trainer(**{**defaults, **settings})


def fit(trainer: pl.Trainer, run_dir: Path, pause: float = 0.0, task: TinyTask | None = None) -> TinyTask:
    """Train to the end, from last.ckpt if there is one; by default the tiny task."""
    task, last = task or make_task(pause), run_dir / "checkpoints" / "last.ckpt"
    torch.manual_seed(time.time_ns() % 2**32)  # a resumed run must not depend on the state it starts in
    valid = [torch.linspace(-1, 1, 8)[:, None]]
    trainer.fit(task, TinyLoader(trainer), Valid(valid), ckpt_path=last if last.exists() else None)
    return task


class Valid:
    """Batches with a length, untouched by Lightning."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def reproducible(run_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIME)} for row in read_table(run_dir / "metrics.csv")]


def best(run_dir: Path) -> dict:
    return read_checkpoint(run_dir / "checkpoints" / "best.ckpt")["state_dict"]


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_same_run(run_dir: Path, weights: dict, whole: tuple[dict, list, dict]) -> None:
    """Weights, rows less the columns of time, and best weights, bit for bit."""
    assert_equal(weights, whole[0])
    assert reproducible(run_dir) == whole[1]
    assert_equal(best(run_dir), whole[2])


def main() -> int:
    raise_on_signals()
    try:
        run_dir = Path(sys.argv[1])
        epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
        pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
        devices = int(sys.argv[4]) if len(sys.argv) > 4 else 1
        strategy = "ddp" if devices > 1 else "auto"
        trainer = make_trainer(run_dir, epochs, every_seconds=0.05, devices=devices, strategy=strategy)
        task = fit(trainer, run_dir, pause)
        if trainer.is_global_zero:
            torch.save(task.state_dict(), run_dir / "final.pt")
        return 0
    except Interrupted as stop:
        return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
