#!/usr/bin/env python
"""What a step of training costs outside forward pass, backward pass and optimizer: a run beside a bare loop.

    python scripts/overhead.py [--recipe quickstart] [--steps 200] [--runs 3] [--most MILLISECONDS] [key=value ...]

The run is that of `python -m ndeflow.train`, with all its callbacks, checkpoints and metrics. After each of its steps
a bare loop takes the same one with a second task: a batch cut beforehand, forward pass, loss, backward pass,
gradient clipping, optimizer. So both meet the same moods of the machine. Validation and the first ten steps are left
out; checkpoints, those of the best weights included, are not. Then the same beside a Trainer that has no callbacks,
loggers, checkpoints or validation: what Lightning takes in any case.

Exits 1 where the median run spends more than --most milliseconds of CPU time a step outside, or where run, Trainer and
loop do not end with the same weights.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ndeflow import request
from ndeflow.data.loader import TrainingBatches
from ndeflow.numerics.seeds import mix
from ndeflow.running import assembled, prepare
from ndeflow.runs import Run
from ndeflow.tasks.base import Task, weighed
from ndeflow.training.stopwatch import Stopwatch

NAMES = ("run", "bare", "plain", "bare-plain")  # of the folders of what is trained
WARM = 10  # steps that pay for what is made only once
PARTS = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")  # of a Trainer


class Moment(NamedTuple):
    """Seconds of the clock on the wall, and of CPU time of this process."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time())

    def passed(self) -> Moment:
        """What passed since."""
        now = Moment.now()
        return Moment(now.wall - self.wall, now.cpu - self.cpu)

    def after(self, pause: Moment) -> Moment:
        return Moment(self.wall + pause.wall, self.cpu + pause.cpu)


def batches(loader: TrainingBatches) -> Iterator[Any]:
    """The batches of all epochs."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def objective(task: Task, batch: Any, step: int, steps: int) -> Tensor:
    """What step number `step` of so many minimises."""
    task.model.reseed(mix(task.seed, step))
    with task.model.prepared(task.regularizers) as preparation:
        output = task.model(batch)
    loss, penalties = task.terms(output, batch, preparation)
    return weighed(loss, penalties, {name: task.regularizers[name].weight_at(step / steps) for name in penalties})


class Bare:
    """The loop that a person would write: only what learning needs."""

    def __init__(self, run: Run, steps: int) -> None:
        self.task, self.steps, self.done = run.task, steps, 0
        self.clip = run.config["trainer"]["gradient_clip_val"]
        self.optimizer = self.task.optimizer(self.task.model.parameters())
        found = batches(run.data.train_dataloader())
        self.batches = [next(found) for _ in range(steps)]

    def step(self) -> None:
        loss = objective(self.task, self.batches[self.done], self.done, self.steps)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.clip)
        self.optimizer.step()
        self.done += 1


class Plain(pl.LightningModule):
    """The same steps for a Trainer, and nothing else."""

    def __init__(self, task: Task, steps: int) -> None:
        super().__init__()
        self.model, self.steps = task.model, steps
        self._task = (task,)  # which is no part of this one

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return objective(*self._task, batch, self.global_step, self.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._task[0].optimizer(self.model.parameters())


class Beside(Callback):
    """Takes each step of the run a second time, bare, and notes what both took.

    The first of the Trainer's callbacks: a step lasts from here to the same place of the next one, validation apart.
    `watch`, the run's own, is stopped meanwhile.
    """

    def __init__(self, bare: Bare, watch: Stopwatch) -> None:
        self.bare, self.watch = bare, watch
        self.run_steps: list[Moment] = []
        self.bare_steps: list[Moment] = []
        self._began: Moment | None = None
        self._paused = Moment(0.0, 0.0)

    def on_train_batch_start(self, *args: Any) -> None:
        self._compare()

    def on_train_end(self, *args: Any) -> None:
        self._compare()

    def on_validation_start(self, *args: Any) -> None:
        self._paused = Moment.now()

    def on_validation_end(self, *args: Any) -> None:
        if self._began is not None:
            self._began = self._began.after(self._paused.passed())

    def _compare(self) -> None:
        if self._began is not None:
            self.run_steps.append(self._began.passed())
            self.watch.pause()
            began = Moment.now()
            self.bare.step()
            self.bare_steps.append(began.passed())
            self.watch.resume()
        self._began = Moment.now()


@dataclass(frozen=True)
class Times:
    """Milliseconds a step of a training and of the bare loop beside it."""

    run: Moment
    bare: Moment

    @classmethod
    def of(cls, beside: Beside) -> Times:
        return cls(mean(beside.run_steps[WARM:]), mean(beside.bare_steps[WARM:]))

    @property
    def outside(self) -> Moment:
        return Moment(self.run.wall - self.bare.wall, self.run.cpu - self.bare.cpu)

    @property
    def share(self) -> Moment:
        """In percent of the training."""
        return Moment(100 * self.outside.wall / self.run.wall, 100 * self.outside.cpu / self.run.cpu)


@dataclass(frozen=True)
class Result:
    """Of a run, and of a Trainer alone. stopwatch: milliseconds a step outside optimizer steps, by the run's own.

    identical: whether all end with the same weights.
    """

    run: Times
    plain: Times
    stopwatch: float
    identical: bool


def measured(words: list[str], steps: int) -> Result:
    """One run of so many steps, one of a Trainer alone, and their bare loops."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1"]
        runs = [made([*words, *ends, f"run_dir={folder}/{name}"]) for name in NAMES]
        run, bare, plain, other = runs
        beside, stopwatch = trained(run, Bare(bare, steps))
        alone = trained_plainly(plain, Bare(other, steps))
        return Result(Times.of(beside), Times.of(alone), 1e3 * stopwatch.seconds_outside, same(runs))


def made(words: list[str]) -> Run:
    """Ready to be trained."""
    run = prepare(request.read(words).config)
    assert run is not None
    return run


def trained(run: Run, bare: Bare) -> tuple[Beside, Stopwatch]:
    """As `python -m ndeflow.train` trains."""
    assembly = assembled(run)
    watch = assembly.recording.watch
    beside = Beside(bare, watch)
    assembly.trainer.callbacks.insert(0, beside)  # pyright: ignore[reportAttributeAccessIssue]
    gc.freeze()
    assembly.trainer.fit(run.task, datamodule=run.data)
    return beside, watch


def trained_plainly(run: Run, bare: Bare) -> Beside:
    """By a Trainer that has nothing."""
    beside = Beside(bare, Stopwatch())
    nothing: dict[str, Any] = dict.fromkeys(PARTS, False)
    limits: dict[str, Any] = {"max_steps": bare.steps, "max_epochs": -1, "gradient_clip_val": bare.clip}
    trainer = pl.Trainer(accelerator="cpu", devices=1, callbacks=[beside], **limits, **nothing)
    gc.freeze()
    trainer.fit(Plain(run.task, bare.steps), run.data.train_dataloader())
    return beside


def same(runs: Sequence[Run]) -> bool:
    """Whether all have the same weights."""
    first, *others = [run.task.state_dict() for run in runs]
    return all(torch.equal(first[name], other[name]) for other in others for name in first)


def mean(steps: list[Moment]) -> Moment:
    """In milliseconds."""
    return Moment(*(1e3 * statistics.fmean(column) for column in zip(*steps, strict=True)))


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(results: list[Result]) -> str:
    runs, plain = [result.run for result in results], [result.plain for result in results]
    rows = {
        "run": [times.run for times in runs],
        "bare loop": [times.bare for times in runs],
        "outside: their difference": [times.outside for times in runs],
        "share of the run, %": [times.share for times in runs],
        "outside, of a Trainer alone": [times.outside for times in plain],
    }
    lines = [f"{'milliseconds a step':<28}  {'wall':<24}  CPU"]
    for title, moments in rows.items():
        wall, cpu = zip(*moments, strict=True)
        lines.append(f"{title:<28}  {spread(wall):<24}  {spread(cpu)}")
    return "\n".join([*lines, f"{'outside, by its stopwatch':<28}  {spread([r.stopwatch for r in results])}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=float, default=math.inf, help="milliseconds outside that are allowed")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.steps <= WARM or options.runs < 1:
        parser.error(f"expected more than {WARM} steps and at least 1 run, got {options.steps} and {options.runs}")
    words = [f"recipe={options.recipe}", "scheduler=null", "patience=null", *options.overrides]
    results = [measured(words, options.steps) for _ in range(options.runs)]
    identical = all(result.identical for result in results)
    print(f"{options.recipe}: {options.runs} runs of {options.steps} steps; median (smallest to largest)")
    print(table(results))
    print(f"weights of run, Trainer and bare loops: {'identical' if identical else 'DIFFERENT'}")
    return 0 if identical and statistics.median(r.run.outside.cpu for r in results) <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
