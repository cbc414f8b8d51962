#!/usr/bin/env python
"""What a step of training costs outside forward pass, backward pass and optimizer: a run beside a bare loop.

    python scripts/overhead.py [--recipe quickstart] [--steps 200] [--runs 3] [--most MILLISECONDS] [key=value ...]

The run is that of `python -m ndeflow.train`, with all its callbacks, checkpoints and metrics. After each of its steps
a bare loop takes the same one with a second task: a batch cut beforehand, forward pass, loss, backward pass,
gradient clipping, optimizer. So both meet the same moods of the machine. Validation and the first ten steps are left
out; checkpoints, those of the best weights included, are not.

Exits 1 where the median run spends more than --most milliseconds of CPU time a step outside, or where run and loop do
not end with the same weights.
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

import torch
from lightning.pytorch.callbacks import Callback

from ndeflow import request
from ndeflow.data.loader import TrainingBatches
from ndeflow.numerics.seeds import mix
from ndeflow.running import assembled, prepare
from ndeflow.runs import Run
from ndeflow.tasks.base import weighed
from ndeflow.training.stopwatch import Stopwatch

NAMES = ("run", "bare")
WARM = 10  # steps that pay for what is made only once


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


class Bare:
    """The loop that a person would write: only what learning needs."""

    def __init__(self, run: Run, steps: int) -> None:
        self.task, self.steps, self.done = run.task, steps, 0
        self.clip = run.config["trainer"]["gradient_clip_val"]
        self.optimizer = self.task.optimizer(self.task.model.parameters())
        found = batches(run.data.train_dataloader())
        self.batches = [next(found) for _ in range(steps)]

    def step(self) -> None:
        batch, task = self.batches[self.done], self.task
        task.model.reseed(mix(task.seed, self.done))
        with task.model.prepared(task.regularizers) as preparation:
            output = task.model(batch)
        loss, penalties = task.terms(output, batch, preparation)
        weights = {name: task.regularizers[name].weight_at(self.done / self.steps) for name in penalties}
        loss = weighed(loss, penalties, weights)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), self.clip)
        self.optimizer.step()
        self.done += 1


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
class Result:
    """Milliseconds a step of the run and of the bare loop; those outside optimizer steps, by the run's own stopwatch.

    identical: whether both end with the same weights.
    """

    run: Moment
    bare: Moment
    stopwatch: float
    identical: bool

    @property
    def outside(self) -> Moment:
        return Moment(self.run.wall - self.bare.wall, self.run.cpu - self.bare.cpu)

    @property
    def share(self) -> Moment:
        """In percent of the run."""
        return Moment(100 * self.outside.wall / self.run.wall, 100 * self.outside.cpu / self.run.cpu)


def measured(words: list[str], steps: int) -> Result:
    """One run of so many steps, and its bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1"]
        run, twin = (prepare(request.read([*words, *ends, f"run_dir={folder}/{name}"]).config) for name in NAMES)
        assert run is not None and twin is not None
        bare, assembly = Bare(twin, steps), assembled(run)
        beside = Beside(bare, assembly.recording.watch)
        assembly.trainer.callbacks.insert(0, beside)  # pyright: ignore[reportAttributeAccessIssue]
        gc.freeze()
        assembly.trainer.fit(run.task, datamodule=run.data)
        weights, others = run.task.state_dict(), bare.task.state_dict()
        return Result(
            mean(beside.run_steps[WARM:]),
            mean(beside.bare_steps[WARM:]),
            1e3 * assembly.recording.watch.seconds_outside,
            all(torch.equal(weights[name], others[name]) for name in weights),
        )


def mean(steps: list[Moment]) -> Moment:
    """In milliseconds."""
    return Moment(*(1e3 * statistics.fmean(column) for column in zip(*steps, strict=True)))


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(results: list[Result]) -> str:
    rows = {"run": "run", "bare": "bare loop", "outside": "outside: their difference", "share": "share of the run, %"}
    lines = [f"{'milliseconds a step':<28}  {'wall':<24}  CPU"]
    for name, title in rows.items():
        wall, cpu = zip(*(getattr(result, name) for result in results), strict=True)
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
    print(f"weights of run and bare loop: {'identical' if identical else 'DIFFERENT'}")
    return 0 if identical and statistics.median(r.outside.cpu for r in results) <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
