"""One style for all figures: quiet axes, and colours that colour-blind people tell apart (Okabe & Ito 2008)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import YAxis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
CYCLE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
INK, FAINT = "#222222", "#8A8A8A"
RC: dict[str, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names of channels and classes may hold any signs
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "date.converter": "concise",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with this style, whatever the user's own settings are, which stay as they were."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        from matplotlib import style

        with style.context(["default", RC]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made now, with this style, and not when the file is written
            return figure

    return drawn


def grid(
    rows: int, columns: int, width: float, height: float, title: str = "", layout: Any = "constrained", **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels of `width` x `height` inches, and its axes by row and column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + (0.4 if title else 0.0)), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:
        panel.tick_params(labelsize=9)  # otherwise looked up when drawn, in the user's settings
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, [list(row) for row in axes]


def panels(count: int, width: float, height: float, title: str, most: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `most` a row; places left over are empty."""
    columns = _columns(count, most)
    figure, axes = grid(math.ceil(count / columns), columns, width, height, title)
    flat = [panel for row in axes for panel in row]
    for panel in flat[count:]:
        panel.set_axis_off()
    return figure, flat[:count]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, under them, each label once."""
    found = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=_columns(len(found)))


def _columns(count: int, most: int = 5) -> int:
    """As many columns as make full lines, at most `most`."""
    return math.ceil(count / math.ceil(count / most))


def set_scale(axis: YAxis, *values: np.ndarray) -> None:
    """Logarithmic where all values are positive and span over a factor of twenty."""
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    if known.size and known.min() > 0 and known.max() / known.min() > 20:
        logarithmic(axis, known.max() / known.min())


def logarithmic(axis: YAxis, span: float) -> None:
    """A logarithmic scale for values that span a factor of `span`; labels are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 1000 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
