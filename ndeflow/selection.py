"""The series that a trained run is asked to predict: those of a new file, or its own test split."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ndeflow.data import Columns, DataModule, Everything, Files, First, NewSeries, Visibility, read_for
from ndeflow.data.long import read_long
from ndeflow.load import Run, build

COLUMNS = ("id_column", "time_column", "sep", "decimal", "min_observations", "drop_short")


def to_predict(run: Run, path: Path | None, columns: Mapping[str, Any], trust: Collection[str]) -> NewSeries:
    """The series of the file at `path`, or the run's test split where it is None.

    columns: what of `COLUMNS` is not as in training. Raises ValueError where the file does not fit the run, or
    leaves the model nothing to read of a series.
    """
    series = own_test(run, trust) if path is None else new_series(run, path, columns, trust)
    seen = series.batch.seen.flatten(1).any(dim=1).tolist()
    blind = [name for name, some in zip(series.ids, seen, strict=True) if not some]
    if blind:
        raise ValueError(f"expected at least one value of each id for the model to read, got none of {blind[:5]}")
    return series


def new_series(run: Run, path: Path, columns: Mapping[str, Any], trust: Collection[str]) -> NewSeries:
    """The series of a new file. All values are seen where it has rows without any, else what training let be seen."""
    data = run.config["data"]
    trained = {name: data[name] for name in COLUMNS if name in data} if is_files(data) else {}
    written = Columns(**{**trained, **columns})
    series = read_for(run.spec, path, written)
    observed = series.batch.mask.any(dim=-1).tolist()
    blank = any(not row[k] for row, own in zip(observed, series.times, strict=True) for k in range(len(own)))
    return series if blank else read_for(run.spec, path, written, seen=policy(data, trust))


def is_files(data: dict[str, Any]) -> bool:
    return data["_target_"] in ("ndeflow.data.Files", "ndeflow.data.files.Files")


def policy(data: dict[str, Any], trust: Collection[str]) -> Visibility:
    """What training let a model read: as configured, or as `DataModule` does by default."""
    if data.get("seen") is not None:
        return build(data["seen"], trust)
    return First(1) if is_files(data) and data.get("target") is None else Everything()


def own_test(run: Run, trust: Collection[str]) -> NewSeries:
    """The test split of the run's own data, with the ids and times of its file where it was one."""
    data = build(run.config["data"], trust)
    if not isinstance(data, DataModule):
        raise ValueError(f"expected a run on an ndeflow.DataModule, got {type(data).__name__}; set data.path")
    batch = data.test
    numbers = batch.ts * run.spec.time_scale + (run.spec.time_origin or 0.0)
    lengths = [length(ts, mask) for ts, mask in zip(batch.ts, batch.mask, strict=True)]
    if not isinstance(data, Files):
        times = [[f"{t:.10g}" for t in row[:n].tolist()] for row, n in zip(numbers, lengths, strict=True)]
        return NewSeries(batch, [str(i) for i in batch.index.tolist()], times)
    ids = [data.ids[i] for i in batch.index.tolist()]
    long = read_long(data.path, data.columns)
    place = {name: i for i, name in enumerate(long.ids)}
    times = []
    for name, row, n in zip(ids, numbers, lengths, strict=True):
        known, written = long.ts[place[name]], long.written[place[name]]
        shift = known[0] if run.spec.time_origin is None else 0.0
        times.append([written[int(np.abs(known - shift - t).argmin())] for t in row[:n].tolist()])
    return NewSeries(batch, ids, times)


def length(ts: Tensor, mask: Tensor) -> int:
    """How many times of a row ts (T,) with mask (T, C) are not padding, which repeats the last one unobserved."""
    own = mask.any(dim=-1) | (ts.diff(prepend=ts[:1] - 1) > 0)
    return int(own.nonzero().max()) + 1
