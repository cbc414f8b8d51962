"""What a training would be like, from a few batches, without training."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ndeflow.contracts import Batch
from ndeflow.data import DataModule
from ndeflow.data.loader import lengths, moved, take
from ndeflow.tasks import Task
from ndeflow.training.precision import precision

STEPS = 3


def preview(task: Task, data: DataModule, trainer: dict[str, Any]) -> str:
    """Shapes, parameters, evaluations per solve, and the minutes that the training would take."""
    train = data.train
    rows = min(data.batch_size, len(train.index))
    batch = take(train, torch.arange(rows), lengths(train))
    plugin = precision(trainer.get("precision") or "32-true")
    plugin.convert_module(task)
    task.model.train()
    batch = moved(batch, task.model, batch.ts.device)
    with plugin.train_step_context():
        seconds, output = min((_step(task, batch) for _ in range(STEPS)), key=lambda pair: pair[0])
    batches = math.ceil(len(train.index) / data.batch_size)
    epochs = trainer["max_epochs"] or 0
    solves = [f"{s.stats.nfe.double().mean():.1f} evaluations, {s.stats.accepted.double().mean():.1f} steps"
              for s in output.solutions]  # fmt: skip
    without = [name for name, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    lines = [
        f"batch       ts {_shape(batch.ts)}  ys {_shape(batch.ys)}  {int(batch.mask.sum())} observed, "
        f"{int(batch.scored.sum())} scored",
        f"prediction  {_shape(output.prediction)}",
        f"parameters  {sum(p.numel() for p in task.model.parameters()):,}"
        + (f" (no gradient for {', '.join(without)})" if without else ""),
        f"solves      {'; '.join(solves) or 'none'}",
        f"rows        {len(train.index)} to train on, {len(data.val.index)} to validate on, "
        f"{len(data.test.index)} to test",
        f"time        {1000 * seconds:.1f} ms a step, {batches} steps an epoch, {epochs} epochs: "
        f"about {seconds * batches * epochs / 60:.1f} minutes and validation",
    ]
    return "\n".join(lines)


def _step(task: Task, batch: Batch) -> tuple[float, Any]:
    """Seconds of one forward and backward pass, and the output."""
    start = time.perf_counter()
    task.model.reseed(0)
    task.zero_grad()
    with task.model.prepared(task.regularizers) as preparation:
        output = task.model(batch)
    loss, penalties = task.terms(output, batch, preparation)
    (loss + sum(penalties.values())).backward()
    return time.perf_counter() - start, output


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
