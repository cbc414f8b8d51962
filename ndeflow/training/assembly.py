"""The Trainer of a run: its callbacks in the order that holds, its checkpoints, its trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ndeflow.training.interrupt import Interrupt
from ndeflow.training.profiling import Unprofiled
from ndeflow.training.progress import ProgressBar
from ndeflow.training.randomness import Reseed
from ndeflow.training.recording import MeterLogging
from ndeflow.training.saver import AtomicIO, Saver, best_checkpoint
from ndeflow.training.silence import silence
from ndeflow.training.switching import Switching
from ndeflow.training.table import TableLogger


@dataclass(frozen=True)
class Settings:
    """What of a run's configuration concerns its Trainer.

    seed: of all draws. monitor, monitor_mode, patience: what best.ckpt and early stopping look at; patience None:
    no early stopping. log_every: steps between rows of metrics. save_every: seconds between checkpoints.
    """

    seed: int = 0
    monitor: str = "val/loss"
    monitor_mode: str = "min"
    patience: int | None = None
    log_every: int = 50
    save_every: float = 60.0
    quiet: bool = False


@dataclass(frozen=True)
class Assembly:
    """A Trainer and the parts of it that a run asks afterwards."""

    trainer: pl.Trainer
    recording: MeterLogging
    switching: Switching
    best: ModelCheckpoint
    table: TableLogger


OWN = frozenset(
    ("default_root_dir", "callbacks", "logger", "plugins", "num_sanity_val_steps", "log_every_n_steps")
    + ("enable_model_summary", "inference_mode")
)
"""Options of the Trainer that `assemble` sets itself."""


def trainer_options() -> set[str]:
    """The names of the options that `assemble` takes."""
    return set(signature(pl.Trainer).parameters) - OWN


def assemble(
    folder: Path,
    settings: Settings,
    identity: Mapping[str, Any],
    trackers: Sequence[Logger] = (),
    **options: Any,
) -> Assembly:
    """The Trainer of the run in `folder`.

    identity: plain values put into every checkpoint (configuration, what the data were). options: of
    `lightning.pytorch.Trainer`.
    """
    silence()
    checkpoints = folder / "checkpoints"
    recording = MeterLogging(settings.log_every)
    switching = Switching(recording.watch)
    saver = Saver(checkpoints, settings.save_every)
    best = best_checkpoint(checkpoints, settings.monitor, settings.monitor_mode)
    table = TableLogger(folder / "metrics.csv")
    callbacks: list[Callback] = [Reseed(settings.seed), switching, recording, saver, Interrupt(saver)]
    callbacks.append(ProgressBar(recording, settings.monitor, quiet=settings.quiet))
    if settings.patience is not None:
        callbacks.append(
            EarlyStopping(
                settings.monitor,
                patience=settings.patience,
                mode=settings.monitor_mode,
                check_on_train_epoch_end=False,
                check_finite=False,
                strict=False,  # best.ckpt refuses what no validation reports
            )
        )
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=[*callbacks, best],
        logger=[table, *trackers],
        plugins=[AtomicIO(identity)],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        inference_mode=False,
        **{"profiler": Unprofiled(), **options},
    )
    return Assembly(trainer, recording, switching, best, table)
