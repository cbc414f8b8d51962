"""A data set for training: the user gives series, the rest is done here, once, in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypedDict, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec, Series
from ndeflow.data.drop import dropped
from ndeflow.data.loader import EvaluationBatches, TrainingBatches
from ndeflow.data.rows import Rows, join, rows_of, to_batch
from ndeflow.data.split import VAL_SHARE, carve, split
from ndeflow.data.statistics import channel_statistics, check_varying, input_statistics, median_gap
from ndeflow.data.targets import class_weights, codes, known_classes
from ndeflow.data.visibility import Everything, First, Visibility

SPLITS = ("train", "val", "test")


class OtherOptions(TypedDict, total=False):
    """The keywords of `DataModule` to which subclasses give no default of their own."""

    batch_size: int
    eval_batch_size: int | None
    seed: int
    split_seed: int
    seen: Visibility | None
    drop: float
    drop_seed: int
    per_channel: bool
    trim: bool


class DataModule(LightningDataModule, ABC):
    """Series in three splits: write `series`.

    batch_size, eval_batch_size: rows a batch and rank (evaluation: four times the batch size by default).
    seed: of the training order. split_seed: of the split by row. seen: what a model may read, by default
    everything where there are targets, else the first observed time. standardise: values (and inputs) to mean 0
    and standard deviation 1 of the training rows' observed values, and let models give numbers to regress in such
    units. time_scale: length of the model's time unit in the data's own; None: the median gap of the training rows.
    drop, drop_seed, per_channel: leave out that fraction of the observations of all splits (see `ndeflow.data.drop`).
    trim: cut each batch to its longest row.

    A subclass states what it knows of its data in the attributes below, at the latest in `series`.
    """

    channel_names: tuple[str, ...] = ()
    """Names of the channels; y0, y1, ... where empty."""
    input_names: tuple[str, ...] = ()
    """Names of the inputs; s0, s1, ... where empty."""
    time_kind: str = "number"
    time_origin: float | None = 0.0
    """What was subtracted from all times; None: from each row its first time."""
    refuse_constant: bool = False
    """Refuse a channel that is constant in the training rows, even where values are not standardised."""

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        seen: Visibility | None = None,
        standardise: bool = False,
        time_scale: float | None = 1.0,
        drop: float = 0.0,
        drop_seed: int = 0,
        per_channel: bool = True,
        trim: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = 4 * batch_size if eval_batch_size is None else eval_batch_size
        if min(self.batch_size, self.eval_batch_size) < 1:
            raise ValueError(f"expected batch sizes of at least 1, got {batch_size} and {eval_batch_size}")
        if not 0 <= drop < 1:
            raise ValueError(f"expected data.drop in [0, 1), the fraction of observations left out, got {drop}")
        if time_scale is not None and not time_scale > 0:
            raise ValueError(f"expected a positive data.time_scale, or null for the median gap, got {time_scale}")
        self.time_scale = time_scale
        self.seed, self.split_seed, self.drop_seed = seed, split_seed, drop_seed
        self.seen, self.standardise = seen, standardise
        self.drop, self.per_channel, self.trim = drop, per_channel, trim
        self._batches: dict[str, Batch] = {}
        self._spec: DataSpec | None = None
        self._outputs = 0

    @abstractmethod
    def series(self) -> Series | Mapping[str, Series]:
        """All rows, to be split 70/15/15; or a mapping `train`, `val`, `test`, taken as given.

        A mapping without `val` has 15 % of its training rows taken for it.
        """

    def visible(self, split: str, ts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        """What a model may read in a split, (N, T, C) bool.

        ts: (N, T) in the model's unit. mask: (N, T, C). index: (N,) row numbers. What is not in `mask` never is.
        """
        policy = self.seen or (Everything() if self._outputs else First(1))
        return policy.seen(mask, index)

    def references(self) -> dict[str, float]:
        """Scores of simple methods on the test split, named `reference/...`; none by default."""
        return {}

    @property
    def spec(self) -> DataSpec:
        """What a model must know of the training data to be used on other data."""
        self.setup()
        assert self._spec is not None
        return self._spec

    @property
    def sizes(self) -> dict[str, int]:
        """What a model's constructor asks for; `outputs`: classes, or numbers to regress, 0 without target."""
        return {
            "channels": len(self.spec.channels),
            "classes": len(self.spec.classes),
            "outputs": self._outputs,
            "inputs": len(self.spec.statics),
            "length": max(batch.ts.shape[1] for batch in self._batches.values()),
            "train_rows": len(self.train.index),
        }

    @property
    def train(self) -> Batch:
        """The whole training split, padded, in the model's units."""
        return self._split("train")

    @property
    def val(self) -> Batch:
        return self._split("val")

    @property
    def test(self) -> Batch:
        return self._split("test")

    @final
    def setup(self, stage: str | None = None) -> None:
        """Read, split, drop, standardise and pad; once, whatever the stage."""
        if self._batches:
            return
        rows, parts = self._divided()
        if self.drop:
            rows = dropped(rows, self.drop, self.drop_seed, per_channel=self.per_channel)
        self._spec = self._described(rows, parts)
        width = rows.target.shape[1] if isinstance(rows.target, Tensor) else 0
        self._outputs = len(self._spec.classes) or width
        for name, index in parts.items():
            batch = to_batch(rows.take(index), self._spec, index)
            seen = self.visible(name, batch.ts, batch.mask, index)
            self._batches[name] = batch._replace(seen=seen & batch.mask)

    @final
    def train_dataloader(self) -> TrainingBatches:
        return TrainingBatches(self.train, self.batch_size, self.seed, trainer=self.trainer, trim=self.trim)

    @final
    def val_dataloader(self) -> EvaluationBatches:
        return EvaluationBatches(self.val, self.eval_batch_size, trainer=self.trainer, trim=self.trim)

    @final
    def test_dataloader(self) -> EvaluationBatches:
        return EvaluationBatches(self.test, self.eval_batch_size, trainer=self.trainer, trim=self.trim)

    @final
    def predict_dataloader(self) -> EvaluationBatches:
        """The test split."""
        return self.test_dataloader()

    @final
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The batch itself where it is there already: looking through it costs more than a step's bookkeeping."""
        there = batch.ts.device == device
        return batch if there else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _split(self, name: str) -> Batch:
        self.setup()
        return self._batches[name]

    def _divided(self) -> tuple[Rows, dict[str, Tensor]]:
        """All rows, and the row numbers of each split."""
        given = self.series()
        if isinstance(given, Series):
            rows = rows_of(given)
            return rows, split(len(rows.ts), rows.labels, self.split_seed)
        if not {"train", "test"} <= set(given) <= set(SPLITS):
            raise ValueError(f"expected the splits train, test and maybe val, got {list(given)}")
        rows, parts = join({name: rows_of(given[name]) for name in SPLITS if name in given})
        if "val" not in parts:
            train, val = carve(parts["train"], rows.labels, VAL_SHARE, self.split_seed)
            parts = {"train": train, "val": val, "test": parts["test"]}
        if not len(parts["train"]):
            raise ValueError("expected at least 2 training rows, one of them for validation; or give `val`")
        return rows, parts

    def _described(self, rows: Rows, parts: Mapping[str, Tensor]) -> DataSpec:
        train = rows.take(parts["train"])
        size, inputs = train.ys[0].shape[1], 0 if train.inputs is None else train.inputs.shape[1]
        channels = self.channel_names or tuple(f"y{i}" for i in range(size))
        if len(channels) != size:
            raise ValueError(f"expected {size} channel names, got {list(channels)}")
        mean, std = channel_statistics(train, channels)
        if self.standardise or self.refuse_constant:
            check_varying(std, channels)
        classes = () if rows.labels is None else known_classes(rows.labels, parts)
        statics_mean, statics_std = input_statistics(train.inputs if self.standardise else None)
        target_mean, target_std = target_statistics(train.target if self.standardise else None)
        return DataSpec(
            channels=channels,
            mean=mean if self.standardise else (0.0,) * size,
            std=std if self.standardise else (1.0,) * size,
            time_scale=self.time_scale or median_gap(train.ts),
            time_kind=self.time_kind,
            time_origin=self.time_origin,
            classes=classes,
            class_weights=() if train.labels is None else class_weights(codes(train.labels, classes), len(classes)),
            statics=self.input_names or tuple(f"s{i}" for i in range(inputs)),
            statics_mean=statics_mean,
            statics_std=statics_std,
            target_mean=target_mean,
            target_std=target_std,
        )


def target_statistics(target: list[str] | Tensor | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each number to regress (N, K), 1 where it is constant; empty for classes."""
    if not isinstance(target, Tensor):
        return (), ()
    origin = target[0]  # less which a constant is 0 without rounding
    mean, std = input_statistics(target - origin)
    return tuple((origin + origin.new_tensor(mean)).tolist()), std
