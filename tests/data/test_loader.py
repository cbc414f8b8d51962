"""Loaders: order, shards, and exact resume under Lightning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Batch, Series
from ndeflow.data import DataModule
from ndeflow.data.loader import EvaluationBatches, TrainingBatches


def split_of(rows: int, length: int = 3) -> Batch:
    mask = torch.ones(rows, length, 1, dtype=torch.bool)
    ts = torch.arange(length).double().expand(rows, -1)
    return Batch(ts, torch.zeros(rows, length, 1), mask, mask, None, None, torch.arange(rows))


def on(rank: int, world: int) -> Any:
    return SimpleNamespace(global_rank=rank, world_size=world)


def rows_in(loader: Any) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def test_each_epoch_has_every_row_once_in_its_own_order() -> None:
    loader = TrainingBatches(split_of(10), 4, seed=3)
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches = rows_in(loader)
        assert [len(batch) for batch in batches] == [4, 4, 2] and len(loader) == 3
        epochs.append(sum(batches, []))
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sum(rows_in(TrainingBatches(split_of(10), 4, seed=3)), []) == epochs[0]
    assert sum(rows_in(TrainingBatches(split_of(10), 4, seed=4)), []) != epochs[0]


def test_training_shards_are_disjoint_and_of_equal_length() -> None:
    shards = [TrainingBatches(split_of(23), 4, seed=0, trainer=on(rank, 2)) for rank in range(2)]
    batches = [rows_in(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [2, 2] == [len(each) for each in batches]
    assert all(len(batch) == 4 for each in batches for batch in each)
    every = [row for each in batches for batch in each for row in batch]
    assert len(set(every)) == 16
    alone = rows_in(TrainingBatches(split_of(23), 8, seed=0))
    assert [sorted(a + b) for a, b in zip(*batches, strict=True)] == [sorted(batch) for batch in alone[:2]]


def test_too_few_rows_for_the_ranks() -> None:
    with pytest.raises(ValueError, match="at least 8 training rows .* on 2 ranks, got 7; lower data.batch_size"):
        TrainingBatches(split_of(7), 4, seed=0, trainer=on(0, 2))
    with pytest.raises(ValueError, match="a row for each of 2 ranks"):
        EvaluationBatches(split_of(1), 4, trainer=on(0, 2))


@pytest.mark.parametrize("rows", [1, 5, 8, 9, 33])
def test_evaluation_takes_every_row_once_in_order(rows: int) -> None:
    batches = rows_in(EvaluationBatches(split_of(rows), 4))
    assert sum(batches, []) == list(range(rows)) and max(map(len, batches)) <= 4


@pytest.mark.parametrize(
    ("rows", "size", "world"), [(2, 1, 2), (3, 1, 2), (9, 4, 2), (33, 16, 2), (17, 4, 3), (9, 2, 4)]
)
def test_evaluation_shards_count_nothing_twice(rows: int, size: int, world: int) -> None:
    shards = [EvaluationBatches(split_of(rows), size, trainer=on(rank, world)) for rank in range(world)]
    batches = [rows_in(shard) for shard in shards]
    assert {len(shard) for shard in shards} == {len(each) for each in batches} and len({len(s) for s in shards}) == 1
    assert all(batch for each in batches for batch in each)
    assert sorted(row for each in batches for batch in each for row in batch) == list(range(rows))


def test_a_batch_is_trimmed_to_its_longest_row() -> None:
    ts = torch.tensor([[0.0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]).bool().unsqueeze(-1)
    split = Batch(ts, torch.zeros(4, 4, 1), mask, mask, None, None, torch.arange(4))
    lengths = [batch.ts.shape[1] for batch in EvaluationBatches(split, 1)]
    assert lengths == [2, 3, 4, 1]  # row 2 asks for a prediction at its unobserved times
    both = next(iter(EvaluationBatches(split, 4)))
    assert both.ts.shape == (4, 4) and both.ys.shape == both.mask.shape == both.seen.shape == (4, 4, 1)
    assert [batch.ts.shape[1] for batch in EvaluationBatches(split, 1, trim=False)] == [4, 4, 4, 4]


def test_a_single_time_is_no_padding() -> None:
    split = Batch(torch.zeros(2, 1), *[torch.ones(2, 1, 1).bool()] * 3, None, None, torch.arange(2))
    assert [batch.ts.shape[1] for batch in EvaluationBatches(split, 1)] == [1, 1]


def test_a_batch_is_moved_only_where_it_is_not_there() -> None:
    batch, data = split_of(3), Twenty()
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0).ys.is_meta


class Twenty(DataModule):
    def series(self) -> dict[str, Series]:
        every = Series(torch.arange(3.0).expand(20, 3), torch.randn(20, 3, 1))
        return {"train": every, "val": every, "test": every}


class Recorder(pl.LightningModule):
    """Keeps the rows of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert isinstance(batch, Batch) and batch.target is None
        self.steps.append(batch.index.tolist())
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(pl.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(callbacks: list[pl.Callback], path: Path | None = None) -> Recorder:
    trainer = pl.Trainer(max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu", devices=1,
                         callbacks=callbacks)  # fmt: skip
    module = Recorder()
    trainer.fit(module, datamodule=Twenty(batch_size=6, seed=2), ckpt_path=path)
    return module


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_resumed_training_sees_the_same_batches(tmp_path: Path, step: int) -> None:
    path = tmp_path / "a.ckpt"
    whole = fit([SaveAt(step, path)])
    assert len(whole.steps) == 12 and len({tuple(rows) for rows in whole.steps}) == 12
    assert whole.validated == list(range(20, 40)) * 3
    assert fit([], path).steps == whole.steps[step:]
