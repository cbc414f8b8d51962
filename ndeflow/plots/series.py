"""Predicted against observed series, in the data's own units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec
from ndeflow.numerics.draws import quantiles
from ndeflow.plots.style import BLUE, CYCLE, FAINT, INK, ORANGE, grid, legend_below, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANNELS, THREADS = 4, 20
_UNITS = ((2 * 365.25 * 86400.0, 365.25 * 86400.0, "years"), (2 * 86400.0, 86400.0, "days"), (7200.0, 3600.0, "hours"))


class _Row(NamedTuple):
    """One series up to its padding: times (T,), or dates; draws (S, T, C), S = 1 without draws; observed (T, C)."""

    name: str
    times: np.ndarray
    draws: np.ndarray
    observed: np.ndarray
    seen: np.ndarray
    scored: np.ndarray


@styled
def predictions(batch: Batch, prediction: Tensor, spec: DataSpec, *, rows: int = 4, draws: bool = False) -> Figure:
    """Observed values, read by the model or held back, and its prediction over time; a panel a series and channel.

    prediction: (B, T, C), or (S, B, T, C) with `draws`: then their median and 50 % and 90 % intervals. At most `rows`
    series and four channels. A dashed line marks where a forecast starts: after the last value that was read.
    """
    series, label = _rows(batch, prediction, spec, rows, draws)
    shown = min(len(spec.channels), CHANNELS)
    stacked = len(series) == 1
    title = "Predictions" + (f" ({shown} of {len(spec.channels)} channels)" if shown < len(spec.channels) else "")
    shape = (shown, 1, 7.2, 2.3) if stacked else (len(series), shown, 3.6 if shown > 1 else 7.2, 2.0)
    figure, axes = grid(*shape, title=title, sharex="all" if stacked else "none")
    for i, row in enumerate(series):
        for c in range(shown):
            panel = axes[c][0] if stacked else axes[i][c]
            _prediction(panel, row, c)
            panel.set_title(spec.channels[c] if stacked else f"{row.name}, {spec.channels[c]}")
            if (c == shown - 1) if stacked else (i == len(series) - 1):
                panel.set_xlabel(label)
    legend_below(figure, [panel for line in axes for panel in line])
    return figure


@styled
def phase_portrait(batch: Batch, prediction: Tensor, spec: DataSpec, *, rows: int = 4, draws: bool = False) -> Figure:
    """The first two channels against each other: predicted path, with its start, and observed points.

    prediction: (B, T, C), or (S, B, T, C) with `draws`: then the median at each time, and thin lines for some draws.
    Raises ValueError for a single channel.
    """
    if len(spec.channels) < 2:
        raise ValueError(f"expected at least two channels for a phase portrait, got {list(spec.channels)}")
    series, _ = _rows(batch, prediction, spec, rows, draws)
    figure, axes = grid(1, 1, 5.4, 4.6, "Phase portrait")
    panel = axes[0][0]
    for row, colour in zip(series, CYCLE * len(series), strict=False):
        for draw in row.draws[: THREADS // len(series)] if draws else ():
            panel.plot(draw[:, 0], draw[:, 1], color=colour, linewidth=0.6, alpha=0.3)
        _path(panel, row, colour, named=len(series) > 1)
    panel.plot([], [], color=INK, label="predicted")
    panel.plot([], [], "D", color=INK, markersize=6, label="start")
    panel.plot([], [], "o", color=INK, markersize=4, label="observed, read")
    panel.plot([], [], "o", color=INK, markerfacecolor="white", markersize=5, label="observed, held back")
    panel.set(xlabel=spec.channels[0], ylabel=spec.channels[1])
    legend_below(figure, [panel])
    return figure


def _path(panel: Axes, row: _Row, colour: str, *, named: bool) -> None:
    middle = np.median(row.draws, axis=0)
    panel.plot(middle[:, 0], middle[:, 1], color=colour, label=row.name if named else None)
    panel.plot(middle[0, 0], middle[0, 1], "D", color=colour, markersize=6, zorder=3)
    for mark, face in ((row.seen, colour), (row.scored, "white")):
        both = mark[:, 0] & mark[:, 1]
        panel.plot(
            row.observed[both, 0], row.observed[both, 1], "o", color=colour, markerfacecolor=face, markersize=4.5
        )


def _prediction(panel: Axes, row: _Row, c: int) -> None:
    first = _first_predicted(row)
    times, draws = row.times[first:], row.draws[:, first:, c]
    if len(draws) > 1:
        edges = quantiles(torch.from_numpy(draws), [0.05, 0.25, 0.5, 0.75, 0.95]).numpy()
        panel.fill_between(times, edges[0], edges[4], color=BLUE, alpha=0.15, linewidth=0, label="90 % of draws")
        panel.fill_between(times, edges[1], edges[3], color=BLUE, alpha=0.3, linewidth=0, label="50 % of draws")
        panel.plot(times, edges[2], color=BLUE, label="median of draws")
    else:
        panel.plot(times, draws[0], color=BLUE, label="predicted")
    if row.times.dtype.kind == "f" and (row.times == row.times.round()).all():
        panel.locator_params(axis="x", integer=True)
    seen, scored = row.seen[:, c], row.scored[:, c]
    panel.plot(row.times[seen], row.observed[seen, c], "o", color=INK, markersize=4, label="observed, read")
    panel.plot(
        row.times[scored], row.observed[scored, c], "o", color=ORANGE, markerfacecolor="white", markersize=4.5,
        markeredgewidth=1.3, label="observed, held back",
    )  # fmt: skip
    start = _forecast_start(row)
    if start is not None:
        panel.axvline(start, color=FAINT, linewidth=1, linestyle="--", label="forecast starts")


def _first_predicted(row: _Row) -> int:
    """The place of the first prediction: models that solve from the last time read repeat theirs at times before."""
    read = np.flatnonzero(row.seen.any(axis=1))
    last = read[-1] if len(read) else 0
    return int(last) if np.ptp(row.draws[:, : last + 1], axis=1).max() == 0 else 0


def _forecast_start(row: _Row) -> Any:
    """The last time read, where everything held back comes later, else None; also where only one time is read."""
    read, held = (np.flatnonzero(mark.any(axis=1)) for mark in (row.seen, row.scored))
    return row.times[read[-1]] if len(read) > 1 and len(held) and held[0] > read[-1] else None


def _rows(batch: Batch, prediction: Tensor, spec: DataSpec, most: int, draws: bool) -> tuple[list[_Row], str]:
    """The first series in data units, and the label of their time axis."""
    expected = ("S", *batch.ys.shape) if draws else tuple(batch.ys.shape)
    if prediction.dim() != len(expected) or prediction.shape[-3:] != batch.ys.shape:
        raise ValueError(f"expected a prediction of shape {expected}, got {tuple(prediction.shape)}; check draws=")
    values = spec.to_data_units(prediction.detach().cpu().double())
    values = values if draws else values[None]
    observed = spec.to_data_units(batch.ys.detach().cpu().double())
    times, label = _times(batch.ts.detach().cpu().double(), spec)
    found = []
    for i in range(min(most, len(batch.index))):
        end = length(batch.ts[i], batch.mask[i])
        leaves = (values[:, i, :end], observed[i, :end], batch.seen[i, :end].cpu(), batch.scored[i, :end].cpu())
        found.append(_Row(f"series {int(batch.index[i])}", times[i, :end], *(leaf.numpy() for leaf in leaves)))
    return found, label


def length(ts: Tensor, mask: Tensor) -> int:
    """How many of a row's times (T,) are not padding: later than the one before, or observed in mask (T, C)."""
    used = (ts[1:] > ts[:-1]) | mask[1:].any(dim=-1)
    return int(used.nonzero().max()) + 2 if used.any() else 1


def _times(ts: Tensor, spec: DataSpec) -> tuple[np.ndarray, str]:
    """Times (B, T) in the data's unit, dates where they are known, and what to call them."""
    elapsed = (ts * spec.time_scale).numpy()
    if spec.time_kind != "date":
        return elapsed + (spec.time_origin or 0.0), "time" if spec.time_origin is not None else "time since the first"
    if spec.time_origin is not None:
        return (1e3 * (elapsed + spec.time_origin)).round().astype("datetime64[ms]"), "date"
    span = elapsed.max() - elapsed.min()
    unit, name = next(((unit, name) for least, unit, name in _UNITS if span >= least), (1.0, "seconds"))
    return elapsed / unit, f"{name} since the first"
