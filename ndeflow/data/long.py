"""The long format: a table of one row per (id, time) read as series, checked line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ndeflow.data import cells, notices
from ndeflow.data.table import Table, read_table

SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are what, and how it is written.

    channels: names, in order; None: all columns left. target: a class label or number, constant within an id.
    statics: numbers constant within an id, the model's `inputs`. sep: one character, or "tab". decimal: "." or ",".
    min_observations, drop_short: ids with fewer times are refused, or left out and their number told.
    Raises ValueError for a column that is two of channel, static and target: a model would read what it is to say.
    A column named `split` is never a channel: it says train, val or test, one of them for each id.
    """

    id_column: str = "id"
    time_column: str = "time"
    channels: tuple[str, ...] | None = None
    target: str | None = None
    statics: tuple[str, ...] = ()
    sep: str = ","
    decimal: str = "."
    min_observations: int = 2
    drop_short: bool = False

    def __post_init__(self) -> None:
        twice = [name for name, n in Counter((*(self.channels or ()), *self.statics, self.target)).items() if n > 1]
        if twice:
            raise ValueError(
                f"expected each column once in data.channels, data.statics and data.target, got {twice} twice; "
                "leave all but one out"
            )

    def found_in(self, table: Table) -> tuple[str, ...]:
        """The channels. Raises ValueError for a column that the table lacks, or a channel without name."""
        header = list(table.columns)
        if not {self.id_column, self.time_column} <= set(header):
            raise ValueError(
                f"{table.path}: expected columns {self.id_column} and {self.time_column}, got {header}; "
                "set data.id_column / data.time_column"
            )
        taken = {self.id_column, self.time_column, SPLIT_COLUMN, self.target, *self.statics}
        channels = tuple(name for name in header if name not in taken) if self.channels is None else self.channels
        lacking = [name for name in (*channels, *self.statics, self.target) if name is not None and name not in header]
        if lacking or not channels:
            raise ValueError(f"{table.path}: expected columns {lacking or '(at least one channel)'}, got {header}")
        if "" in channels:
            raise ValueError(
                f"{table.path}: column {header.index('') + 1} has no name (a row index?); leave it out of the file, "
                "or name the channels in data.channels"
            )
        return channels


class LongTable(NamedTuple):
    """N series in the order of their ids' first rows, each in the order of time.

    ids: N names. written: for each id its times as the file has them. ts: N arrays (T_n,), numbers, or seconds
    since 1970. kind: "number" or "date". ys: N arrays (T_n, C), NaN where missing. channels: C names.
    statics: (N, S) or None. target, split: N texts (None where no row gives it), or None without such a column.
    """

    ids: list[str]
    written: list[list[str]]
    ts: list[np.ndarray]
    kind: str
    ys: list[np.ndarray]
    channels: tuple[str, ...]
    statics: np.ndarray | None
    target: list[str | None] | None
    split: list[str | None] | None

    def take(self, keep: Sequence[int]) -> LongTable:
        """The series at these places."""
        return self._replace(
            ids=[self.ids[i] for i in keep],
            written=[self.written[i] for i in keep],
            ts=[self.ts[i] for i in keep],
            ys=[self.ys[i] for i in keep],
            statics=None if self.statics is None else self.statics[list(keep)],
            target=None if self.target is None else [self.target[i] for i in keep],
            split=None if self.split is None else [self.split[i] for i in keep],
        )


def read_long(path: str | Path, columns: Columns, *, labelled: bool = True) -> LongTable:
    """Read and check a file. Raises ValueError naming the file, the first offending line, and the cure.

    labelled: the file must have the target column; else it is read where there is one.
    """
    table = read_table(path, sep=columns.sep, decimal=columns.decimal)
    if not labelled and columns.target not in table.columns:
        columns = replace(columns, target=None)
    channels = columns.found_in(table)
    groups = cells.ids(table, columns.id_column)
    times = cells.times(table, columns.time_column, columns.decimal)
    order = cells.chronological(table, groups, times.values, columns.time_column)
    values = np.stack([cells.numbers(table, name, columns.decimal) for name in channels], axis=1)
    statics = [static(table, name, groups, columns.decimal) for name in columns.statics]
    ends = np.cumsum(np.bincount(groups.codes))[:-1]
    written = table.text(columns.time_column)
    long = LongTable(
        ids=groups.names,
        written=[[written[row] for row in rows.tolist()] for rows in np.split(order, ends)],
        ts=np.split(times.values[order], ends),
        kind="number" if times.kind == "number" else "date",
        ys=np.split(values[order], ends),
        channels=channels,
        statics=np.stack(statics, axis=1) if statics else None,
        target=cells.of_id(table, columns.target, groups, "target") if columns.target else None,
        split=cells.of_id(table, SPLIT_COLUMN, groups, "split") if SPLIT_COLUMN in table.columns else None,
    )
    long = long_enough(long, table.path, columns.min_observations, drop_short=columns.drop_short)
    notices.notice_order(groups.codes, times.values)
    notices.notice_missing(channels, values)
    notices.notice_gaps(long.ids, long.ts)
    notices.notice_cases(groups.names)
    return long


def static(table: Table, column: str, groups: cells.Ids, decimal: str) -> np.ndarray:
    """(N,): the column's number for each id. Raises ValueError where an id has none, or two."""
    cells.numbers(table, column, decimal)
    texts = cells.of_id(table, column, groups, column)
    lacking = [name for name, text in zip(groups.names, texts, strict=True) if text is None]
    if lacking:
        first = int(np.flatnonzero(groups.codes == groups.names.index(lacking[0]))[0])
        raise table.error(first, f"no {column} for id(s) {lacking}", column)
    return np.array([cells.to_float(text, decimal) for text in texts if text is not None])


def long_enough(long: LongTable, path: Path, least: int, *, drop_short: bool) -> LongTable:
    """Refuse, or leave out, the ids with fewer than `least` times."""
    short = [i for i, ts in enumerate(long.ts) if len(ts) < least]
    if not short:
        return long
    if not drop_short or len(short) == len(long.ids):
        raise ValueError(
            f"{path}: id '{long.ids[short[0]]}' has {len(long.ts[short[0]])} time(s), expected at least {least}; "
            f"data.drop_short=true leaves out such ids ({len(short)} of {len(long.ids)})"
        )
    notices.warn(f"{path}: left out {len(short)} of {len(long.ids)} ids, with fewer than {least} times")
    return long.take(sorted(set(range(len(long.ids))) - set(short)))
