"""Loaders over a split that is in memory: batches are slices of its tensors, position and order are exact on resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import Batch
from ndeflow.numerics.seeds import mix

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@final
class TrainingBatches:
    """Shuffled batches of one epoch: the order is a function of (seed, epoch), each rank takes every world-th row.

    size: rows a batch and rank. With several ranks the last rows that do not fill a batch on each are left out
    of the epoch, so that all ranks take as many steps. Its `state_dict` is the position in the epoch, read from
    the trainer, which counts the batches *processed*.
    """

    def __init__(
        self, split: Batch, size: int, seed: int, *, trainer: Trainer | None = None, trim: bool = True
    ) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.trainer = trainer
        self.rank, self.world = place(trainer)
        self.epoch, self.start = 0, 0
        self.lengths = lengths(split) if trim else None
        self.rows = len(split.index)
        if not len(self):
            raise ValueError(
                f"expected at least {size * self.world} training rows for batches of {size} on {self.world} ranks, "
                f"got {self.rows}; lower data.batch_size"
            )

    @property
    def sampler(self) -> TrainingBatches:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        step = self.size * self.world
        return self.rows // step if self.world > 1 else -(-self.rows // step)

    def __iter__(self) -> Iterator[Batch]:
        start, self.start, step = self.start, 0, self.size * self.world
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.rows, generator=generator)
        for i in range(start, len(self)):
            yield take(self.split, order[i * step : (i + 1) * step][self.rank :: self.world], self.lengths)

    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"position": 0}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"position": progress.processed % len(self)}  # pyright: ignore[reportAttributeAccessIssue]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["position"]


@final
class EvaluationBatches:
    """Every row once, in order. With several ranks each takes every world-th row, in equally many batches."""

    def __init__(self, split: Batch, size: int, *, trainer: Trainer | None = None, trim: bool = True) -> None:
        self.split, self.size, self.lengths = split, size, lengths(split) if trim else None
        self.rank, self.world = place(trainer)
        if len(split.index) < self.world:
            raise ValueError(f"expected a row for each of {self.world} ranks, got {len(split.index)}")

    def __len__(self) -> int:
        rows = len(self.split.index)
        most, fewest = -(-rows // self.world), rows // self.world
        return min(-(-most // self.size), fewest)

    def __iter__(self) -> Iterator[Batch]:
        mine = torch.arange(len(self.split.index))[self.rank :: self.world]
        for rows in mine.tensor_split(len(self)):
            yield take(self.split, rows, self.lengths)


def place(trainer: Trainer | None) -> tuple[int, int]:
    """(rank, number of ranks); alone without a trainer."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def take(split: Batch, rows: Tensor, lengths: Tensor | None = None) -> Batch:
    """The rows (B,) of a split; up to the last time that is no row's padding where the `lengths` of all rows are given.

    A time is padding that is unobserved and no later than the one before.
    """
    chosen = split.of(rows)
    length = split.ts.shape[1] if lengths is None else int(lengths[rows].max())
    if length == split.ts.shape[1]:
        return chosen
    ts, ys, mask, seen = (x[:, :length] for x in chosen[:4])
    return chosen._replace(ts=ts, ys=ys, mask=mask, seen=seen)


def moved(batch: Batch, model: nn.Module, device: torch.device) -> Batch:
    """On the device, values and inputs in the precision of the model's parameters; times keep theirs."""
    real = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    values = {name: x.to(device) for name, x in batch._asdict().items() if isinstance(x, Tensor)}
    values |= {name: values[name].to(real) for name in ("ys", "inputs") if name in values}
    return batch._replace(**values)


def lengths(split: Batch) -> Tensor:
    """How many times of each row (N,) come before its padding, at least 1."""
    later = (split.ts[:, 1:] > split.ts[:, :-1]) | split.mask[:, 1:].any(dim=-1)
    used = torch.cat((torch.ones_like(split.mask[:, :1, 0]), later), dim=1)
    return (used * torch.arange(1, used.shape[1] + 1, device=used.device)).amax(dim=1)
