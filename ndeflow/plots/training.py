"""How a training went, from the rows of its table of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ndeflow.plots.style import AMBER, BLUE, FAINT, GREEN, INK, ORANGE, PINK, legend_below, panels, set_scale, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]
_PENALTY, _COST = "train/penalty/", ("val/loss", "val/nfe")


@styled
def learning_curves(rows: Rows) -> Figure:
    """Training and validation loss over steps, then each penalty and each other validation metric in a panel.

    rows: one mapping a row, `step` among its columns; a column missing in a row is skipped. Logarithmic where values
    are positive and span much. A validation metric z/NAME is left out beside NAME.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    penalties = [name for name in names if name.startswith(_PENALTY)]
    twins = {name.replace("val/", "val/z/", 1) for name in names}  # the same curve in other units
    metrics = [name for name in names if name.startswith("val/") and name not in {*_COST, *twins}]
    figure, axes = panels(1 + len(penalties) + len(metrics), 4.2, 2.9, "Learning curves")
    _curves(axes[0], rows, {"train/loss": ("training", BLUE), "val/loss": ("validation", ORANGE)}, "loss")
    _mark_lowest(axes[0], *column(rows, "val/loss"))
    for panel, name in zip(axes[1:], penalties + metrics, strict=True):
        kind = ("training", BLUE) if name in penalties else ("validation", ORANGE)
        label = f"penalty: {name.removeprefix(_PENALTY)}" if name in penalties else name.removeprefix("val/")
        _curves(panel, rows, {name: kind}, label)
    legend_below(figure, axes)
    return figure


@styled
def evaluations(rows: Rows) -> Figure:
    """Evaluations of the field forward and backward, steps accepted and rejected, and the worst error ratio.

    What is always zero, such as the evaluations backward of an adjoint without any, is not drawn.
    """
    wanted = [
        (
            "evaluations of the field",
            {
                "train/nfe": ("forward", BLUE),
                "train/backward_nfe": ("backward", AMBER),
                "val/nfe": ("validation", ORANGE),
            },
        ),
        ("steps of the solver", {"train/accepted": ("accepted", GREEN), "train/rejected": ("rejected", PINK)}),
        ("worst error / tolerance", {"train/worst_error": ("worst error", INK)}),
    ]
    names = {name for row in rows for name, value in row.items() if value}
    present = [(label, curves) for label, curves in wanted if names & set(curves)] or wanted[:1]
    figure, axes = panels(len(present), 4.2, 2.9, "Cost of the solves")
    for panel, (label, curves) in zip(axes, present, strict=True):
        curves = {name: kind for name, kind in curves.items() if name in names}
        error = "train/worst_error" in curves
        _curves(panel, rows, curves, label, counts=not error)
        if error:
            panel.axhline(1.0, color=FAINT, linewidth=1, linestyle="--", label="tolerance")
    legend_below(figure, axes)
    return figure


def column(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have the column."""
    pairs = [(row.get("step", place), row[name]) for place, row in enumerate(rows) if name in row]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _curves(
    panel: Axes, rows: Rows, curves: Mapping[str, tuple[str, str]], label: str, *, counts: bool = False
) -> None:
    """One line a column; a column of few values shows them as points too. Counts stand on zero."""
    drawn = []
    for name, (text, colour) in curves.items():
        steps, values = column(rows, name)
        if len(steps):
            few = "o" if len(steps) <= 25 else ""
            panel.plot(steps, values, color=colour, label=text, marker=few, markersize=3)
            drawn.append(values)
    panel.set(xlabel="training step", title=label)
    panel.locator_params(axis="x", nbins=5)
    if counts:
        top = max((np.nanmax(values, initial=0.0) for values in drawn), default=0.0)
        panel.set_ylim(0, 1.08 * top if top > 0 else 1)
    else:
        set_scale(panel.yaxis, *drawn)


def _mark_lowest(panel: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    if np.isfinite(values).any():
        place = int(np.nanargmin(values))
        panel.plot(
            steps[place], values[place], "o", color=ORANGE, markersize=7, markerfacecolor="none", markeredgewidth=1.5,
            label=f"lowest validation loss: {values[place]:.3g} at step {steps[place]:.0f}",
        )  # fmt: skip
