"""Predictions as rows of a table, in the data's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec, Output
from ndeflow.models.failures import failures
from ndeflow.tasks.series import log_probabilities

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}

Rows = list[dict[str, str]]


def rows(
    output: Output, batch: Batch, spec: DataSpec, ids: Sequence[str], times: Sequence[Sequence[str]], *, forecast: bool
) -> Rows:
    """The prediction of B series as rows: of classes, of numbers, or of the series' own channels.

    ids: B names. times: for each series its T_n times as text. forecast: give no row before a series' last seen time.
    A series whose solve failed has nan.
    """
    output = unknown_where_failed(output)
    shape = output.prediction.shape[1:] if output.draws else output.prediction.shape
    if shape[:2] == batch.ts.shape and len(shape) == 3:
        return series_rows(output, batch, spec, ids, times, forecast=forecast)
    return class_rows(output, spec, ids) if spec.classes else number_rows(output, spec, ids)


def unknown_where_failed(output: Output) -> Output:
    """The prediction with NaN in the rows whose solve failed."""
    failed = failures(output)
    if failed is None:
        return output
    shape = (-1, *[1] * (output.prediction.dim() - 1 - output.draws))
    return replace(output, prediction=torch.where(failed.view(shape), torch.nan, output.prediction))


def class_rows(output: Output, spec: DataSpec, ids: Sequence[str]) -> Rows:
    """id, prediction (a label), probability_LABEL for each class; from logits (B, K) or draws of them."""
    found = log_probabilities(output).exp().cpu()
    best, probability = found.argmax(dim=-1).tolist(), found.tolist()
    columns = [f"probability_{label}" for label in spec.classes]
    labels = ["nan" if math.isnan(p[0]) else spec.classes[code] for code, p in zip(best, probability, strict=True)]
    return [
        {"id": name, "prediction": label, **dict(zip(columns, map(text, p), strict=True))}
        for name, label, p in zip(ids, labels, probability, strict=True)
    ]


def number_rows(output: Output, spec: DataSpec, ids: Sequence[str]) -> Rows:
    """id, prediction (prediction_0, prediction_1, ... where there are several); with draws their quantiles too."""
    values = spec.target_to_data_units(output.prediction.cpu().double())
    size = values.shape[-1]
    names = ["prediction"] if size == 1 else [f"prediction_{k}" for k in range(size)]
    cells = summaries(values, names, spec.target_std or (1.0,) * size, output)
    return [{"id": name, **own} for name, own in zip(ids, cells, strict=True)]


def series_rows(
    output: Output, batch: Batch, spec: DataSpec, ids: Sequence[str], times: Sequence[Sequence[str]], *, forecast: bool
) -> Rows:
    """id, time, each channel (mean of the draws where there are draws, then their quantiles); one row for each time
    at which some channel was not seen.
    """
    wanted = asked(batch.seen, forecast=forecast).cpu().tolist()
    found: Rows = []
    for b, (name, own) in enumerate(zip(ids, times, strict=True)):
        values = spec.to_data_units(output.prediction[..., b, :, :].cpu().double())
        cells = summaries(values, spec.channels, spec.std, output)
        found += [
            {"id": name, "time": time, **cells[place]} for place, time in enumerate(own) if wanted[b][place]
        ]  # fmt: skip
    return found


def asked(seen: Tensor, *, forecast: bool) -> Tensor:
    """(B, T) bool from seen (B, T, C): not all channels seen; with `forecast`, after the last time seen at all."""
    if not forecast:
        return ~seen.all(dim=-1)
    later = seen.any(dim=-1).flip(1).long().cumsum(dim=1).flip(1)
    return later == 0


def point_rows(points: Tensor, spec: DataSpec) -> Rows:
    """Each channel of points (N, C), in the data's units."""
    values = spec.to_data_units(points.cpu().double()).tolist()
    return [dict(zip(spec.channels, map(text, row, spec.std), strict=True)) for row in values]


def summaries(values: Tensor, names: Sequence[str], units: Sequence[float], output: Output) -> list[dict[str, str]]:
    """For each of R rows of values (R, C), or draws (S, R, C): each column's mean, and its quantiles over the draws.

    units: of each column, what its values differ by.
    """
    columns = {"": values}
    if output.draws:
        levels = values.new_tensor(list(QUANTILES.values()))
        quantiles = torch.quantile(values, levels, dim=0)
        columns = {"": values.mean(dim=0), **{f"_{q}": v for q, v in zip(QUANTILES, quantiles, strict=True)}}
    lists = {suffix: table.cpu().tolist() for suffix, table in columns.items()}
    return [
        {
            f"{name}{suffix}": text(table[row][c], unit)
            for c, (name, unit) in enumerate(zip(names, units, strict=True))
            for suffix, table in lists.items()
        }
        for row in range(len(lists[""]))
    ]


def text(value: float, unit: float = 1.0) -> str:
    """In seven digits, or as many more as tell a thousandth of a unit, up to 17."""
    digits = 4 + math.ceil(math.log10(min(max(1.0, abs(value) / unit), 1e13)))
    return f"{value:.{max(7, digits)}g}"
