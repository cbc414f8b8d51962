"""The progress of a run: one line that renews itself in a terminal, a few lines in a log file."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from typing import Any, TextIO, final

import lightning.pytorch as pl
from lightning.pytorch import callbacks
from lightning.pytorch.trainer.states import TrainerFn

from ndeflow.training.recording import MeterLogging, meter_of

REFRESH = 0.5  # seconds between lines in a terminal
FIRST, LONGEST = 10.0, 300.0  # seconds until the first line in a file, and between lines in the end


@final
class ProgressBar(callbacks.ProgressBar):
    """Epoch, step, loss, evaluations per solve, the validation metric and the time left, on standard error.

    In a terminal one line is renewed twice a second; elsewhere plain lines follow after 10, 20, 40, ... seconds, at
    last every 300. Nothing is printed when `quiet`, nor by other processes than the first.

    recording: where the latest means are. monitor: the validation metric to show.
    """

    def __init__(
        self,
        recording: MeterLogging,
        monitor: str = "val/loss",
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        super().__init__()
        self.recording, self.monitor, self.quiet = recording, monitor, quiet
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._total = math.inf
        self._start, self._due, self._first_step = 0.0, 0.0, 0
        self._open = False  # is the cursor at the end of an unfinished line?
        self._remarks = _Remarks(self)

    def disable(self) -> None:
        self.quiet = True

    def enable(self) -> None:
        self.quiet = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._close()
        print(*args, file=self.stream)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logging.getLogger("ndeflow").addHandler(self._remarks)
        self._total = trainer.estimated_stepping_batches
        self._start, self._first_step = time.perf_counter(), trainer.global_step
        self._due = self._start + (0.0 if self.terminal else FIRST)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.perf_counter() >= self._due:
            self._show(self._parts(trainer, pl_module))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.terminal and trainer.state.fn == TrainerFn.FITTING and time.perf_counter() >= self._due:
            batches = trainer.num_val_batches[dataloader_idx]
            self._show([*self._parts(trainer, pl_module), f"validating {batch_idx + 1}/{batches}"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(self._parts(trainer, pl_module))
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _show(self, parts: list[str]) -> None:
        self._due = self._next(time.perf_counter())
        if self.quiet:
            return
        if self.terminal:
            self.stream.write(f"\r\x1b[K{fitted(parts, shutil.get_terminal_size().columns - 1)}")
        else:
            self.stream.write("  ".join(parts) + "\n")
        self.stream.flush()
        self._open = self.terminal

    def _next(self, now: float) -> float:
        if self.terminal:
            return now + REFRESH
        due = self._due
        while due <= now:
            due += min(due - self._start, LONGEST)
        return due

    def _end(self) -> None:
        logging.getLogger("ndeflow").removeHandler(self._remarks)
        self._close()

    def _close(self) -> None:
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
            self._open = False

    def _parts(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[str]:
        values = {**self.recording.latest, **meter_of(pl_module).peek()}
        shown = (("loss", "train/loss"), ("evals/solve", "train/nfe"))
        parts = [_place(trainer, self._total)]
        parts += [f"{label} {values[name]:.4g}" for label, name in shown if name in values]
        parts.append(self._time(trainer.global_step))
        parts += [f"{self.monitor} {values[self.monitor]:.4g}"] if self.monitor in values else []
        return parts

    def _time(self, step: int) -> str:
        seconds = time.perf_counter() - self._start
        left = (self._total - step) / max(step - self._first_step, 1) * seconds
        if left <= 0:
            return f"in {clock(seconds)}"
        return f"{clock(left)} left" if left < math.inf else f"{clock(seconds)} so far"


@final
class _Remarks(logging.Handler):
    """What the package logs while it trains, as lines of their own."""

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__()
        self.bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        if not self.bar.quiet:
            self.bar.print(f"ndeflow: {record.getMessage()}")


def fitted(parts: list[str], width: int) -> str:
    """As many parts as fit into one line: a wrapped line could not be renewed."""
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts = parts[:-1]
    return "  ".join(parts)[:width]


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _place(trainer: pl.Trainer, total: float) -> str:
    """Epoch and step, with the limit that ends the run."""
    limit, epoch = trainer.max_epochs, trainer.current_epoch + 1
    if limit is not None and limit > 0:
        return f"epoch {min(epoch, limit)}/{limit}  step {trainer.global_step}"
    return f"epoch {epoch}  step {trainer.global_step}" + (f"/{total:.0f}" if math.isfinite(total) else "")
