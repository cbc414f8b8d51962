"""The user's own file as a data set, and new files for a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple, Unpack, final

import torch

from ndeflow.contracts import Batch, DataSpec, Series
from ndeflow.data import cells
from ndeflow.data.base import SPLITS, DataModule, OtherOptions
from ndeflow.data.long import Columns, LongTable, read_long
from ndeflow.data.notices import notice_classes
from ndeflow.data.rows import rows_of, to_batch
from ndeflow.data.targets import natural_order
from ndeflow.data.visibility import Everything, Visibility

TASKS = (None, "classification", "regression")
ORIGINS = ("id", "file")


@final
class Files(DataModule):
    """A CSV or Parquet file in long format: one row per (id, time); one id is one series, in one split.

    path: the file. id_column, time_column, channels, target, statics, sep, decimal, min_observations, drop_short: see
    `Columns`.
    task: how to read the target, "classification" or "regression"; None: regression where all targets are numbers
    and not all of them whole. time_origin: "id" sets each series' first time to 0, "file" the file's first time.
    time_scale: length of the model's time unit, in the unit of a numeric time column, or in seconds for dates;
    None: the median gap of the training ids. Ids are split 70/15/15 with a fixed seed, stratified by class, unless a
    column `split` says train, val or test. Values are standardised unless `standardise=False`.

    Raises ValueError naming the first offending line, before any training; `DataWarning` for what is odd.
    `ids[batch.index]` are the ids' names, once set up.
    """

    refuse_constant = True

    def __init__(
        self,
        path: str | Path,
        *,
        id_column: str = "id",
        time_column: str = "time",
        channels: Sequence[str] | None = None,
        target: str | None = None,
        task: str | None = None,
        statics: Sequence[str] = (),
        sep: str = ",",
        decimal: str = ".",
        time_origin: str = "id",
        min_observations: int = 2,
        drop_short: bool = False,
        standardise: bool = True,
        time_scale: float | None = None,
        **options: Unpack[OtherOptions],
    ) -> None:
        super().__init__(standardise=standardise, time_scale=time_scale, **options)
        if task not in TASKS or time_origin not in ORIGINS:
            raise ValueError(
                "expected data.task classification, regression or null and data.time_origin id or file, "
                f"got {task} and {time_origin}"
            )
        self.path, self.task, self.origin = Path(path), task, time_origin
        names = None if channels is None else tuple(channels)
        self.columns = Columns(id_column, time_column, names, target, tuple(statics), sep, decimal,
                               min_observations, drop_short)  # fmt: skip
        self.ids: list[str] = []

    def series(self) -> Series | Mapping[str, Series]:
        long = read_long(self.path, self.columns)
        self.channel_names, self.input_names, self.time_kind = long.channels, self.columns.statics, long.kind
        self.time_origin = None if self.origin == "id" else float(min(ts[0] for ts in long.ts))
        target = target_of(long, self.task, self.columns.decimal, self.path)
        if long.split is None:
            self.ids = long.ids
            return to_series(long, self.time_origin, target)
        parts = by_split(long.split, self.path)
        self.ids = [long.ids[i] for places in parts.values() for i in places]
        return {
            name: to_series(
                long.take(places), self.time_origin, None if target is None else [target[i] for i in places]
            )
            for name, places in parts.items()
        }


def target_of(long: LongTable, task: str | None, decimal: str, path: Path) -> list[str] | list[float] | None:
    """Each id's class label, or number. Raises ValueError where an id has none, or no finite number to regress."""
    if long.target is None:
        return None
    texts = [text for text in long.target if text is not None]
    if len(texts) < len(long.ids):
        lacking = [name for name, text in zip(long.ids, long.target, strict=True) if text is None]
        raise ValueError(f"{path}: no target for id(s) {lacking}")
    words = [i for i, text in enumerate(texts) if not cells.readable(text, decimal)]
    if task == "regression" and words:
        name, text = long.ids[words[0]], texts[words[0]]
        raise ValueError(f"{path}: target of id '{name}': '{text}' is not a number; set data.task=classification")
    values = [] if words else [cells.to_float(text, decimal) for text in texts]
    if task == "regression" or (task is None and not all(value.is_integer() for value in values)):
        infinite = [i for i, value in enumerate(values) if not isfinite(value)]
        if infinite:
            raise ValueError(
                f"{path}: target of id '{long.ids[infinite[0]]}': expected a finite number, got "
                f"'{texts[infinite[0]]}'; leave out the id"
            )
        return values
    notice_classes(len(set(texts)))
    return list(texts)


def by_split(split: Sequence[str | None], path: Path) -> dict[str, list[int]]:
    """The places of each split that occurs. Raises ValueError for another name than train, val, test."""
    given = [name or "" for name in split]
    unknown = sorted(set(given) - set(SPLITS))
    if unknown:
        raise ValueError(f"{path}: split has {unknown}; expected train, val, test")
    return {name: [i for i, one in enumerate(given) if one == name] for name in SPLITS if name in given}


def to_series(long: LongTable, origin: float | None, target: Sequence[str | float] | None) -> Series:
    """Times less the origin, or less each series' first time where it is None."""
    return Series(
        ts=[torch.from_numpy(ts - (ts[0] if origin is None else origin)) for ts in long.ts],
        ys=[torch.from_numpy(ys) for ys in long.ys],
        inputs=None if long.statics is None else torch.from_numpy(long.statics),
        target=target,
    )


class NewSeries(NamedTuple):
    """New data for a trained model.

    batch: all N series, padded, in the model's units. ids: N names. times: for each series its T_n times as
    written in the file, in the order of time.
    """

    batch: Batch
    ids: list[str]
    times: list[list[str]]


def read_for(
    spec: DataSpec, path: str | Path, columns: Columns | None = None, *, seen: Visibility | None = None
) -> NewSeries:
    """Read a file for a model trained on data described by `spec`; by default all of it is seen.

    Channels and statics are found by the names in `spec`, whatever their order; other columns are passed over.
    Rows without any value are times at which a prediction is wanted. Targets are read if `columns` names them,
    the file has them, and each id has one. Raises ValueError as `read_long` does, and for another kind of time
    or an unknown class.
    """
    columns = replace(columns or Columns(), channels=spec.channels, statics=spec.statics)
    long = read_long(path, columns, labelled=False)
    if long.kind != spec.time_kind:
        raise ValueError(f"{path}: times are of kind '{long.kind}', but the model was trained on '{spec.time_kind}'")
    target = known_target(long, spec, columns.decimal, path)
    rows = rows_of(to_series(long, spec.time_origin, target))
    batch = to_batch(rows, spec, torch.arange(len(long.ids)))
    visible = (seen or Everything()).seen(batch.mask, batch.index)
    return NewSeries(batch._replace(seen=visible), long.ids, long.written)


def known_target(long: LongTable, spec: DataSpec, decimal: str, path: str | Path) -> list[str] | list[float] | None:
    """The targets in the terms of `spec`, if each id has one. Raises ValueError for a class unknown to it."""
    if long.target is None or None in long.target:
        return None
    if not spec.classes:
        return target_of(long, "regression", decimal, Path(path))
    labels = target_of(long, "classification", decimal, Path(path)) or []
    unknown = natural_order(sorted(set(map(str, labels)) - set(spec.classes)))
    if unknown:
        raise ValueError(f"{path}: class(es) {list(unknown)} are unknown to the model; it has {list(spec.classes)}")
    return labels
