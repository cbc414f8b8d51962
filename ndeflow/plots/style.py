"""One style for all figures: quiet axes, and colours that colour-blind people tell apart (Okabe & Ito 2008)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
CYCLE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
INK, FAINT = "#222222", "#8A8A8A"
RC: dict[str, Any] = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9.5,
    "text.color": INK,
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
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with this style, whatever the user's own settings are, which stay as they were."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        import matplotlib
        from matplotlib import rc_context

        with rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **RC}):
            return draw(*args, **kwargs)

    return drawn


def grid(
    rows: int, columns: int, width: float, height: float, title: str = "", **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels of `width` x `height` inches, and its axes by row and column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + (0.4 if title else 0.0)))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, [list(row) for row in axes]


def panels(count: int, width: float, height: float, title: str, most: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `most` a row; places left over are empty."""
    columns = min(count, most)
    figure, axes = grid(math.ceil(count / columns), columns, width, height, title)
    flat = [panel for row in axes for panel in row]
    for panel in flat[count:]:
        panel.set_axis_off()
    return figure, flat[:count]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, under them, each label once."""
    found = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), 5))


def scale_of(*values: np.ndarray) -> str:
    """ "log" where all values are positive and span over a factor of twenty, else "linear"."""
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    return "log" if known.size and known.min() > 0 and known.max() / known.min() > 20 else "linear"
