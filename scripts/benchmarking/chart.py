"""The times of all cases as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from benchmarking.block import Block
from benchmarking.table import number
from ndeflow.plots.style import BLUE, FAINT, ORANGE, legend_below, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

WIDTH = 4.6  # of a panel, in inches
LETTERS = 14  # of the caption, an inch


@styled
def times(blocks: Sequence[Block], title: str, caption: str) -> Figure:
    """A panel a case: of each system the fastest call (dot, its ms beside it) and the median (end of the line).

    The dashed line is the bare field's: as many compiled evaluations as the first system makes. caption: the machine.
    """
    height = 1.3 + 0.27 * max(len(block.rows) for block in blocks)
    figure, axes = panels(len(blocks), WIDTH, height, title)
    for panel, block in zip(axes, blocks, strict=True):
        _draw(panel, block)
        _scale(panel)
    legend_below(figure, axes)
    below = figure.legends[0]
    below.set_title(fill(caption, int(LETTERS * figure.get_figwidth())))
    below.get_title().set_fontsize(8)
    return figure


def _draw(panel: Axes, block: Block) -> None:
    names = [row.system for row in block.rows]
    for place, row in enumerate(block.rows):
        low, middle = 1e3 * row.times.minimum, 1e3 * row.times.median
        colour = BLUE if row.system.startswith("ndeflow") else ORANGE
        panel.plot([low, middle], [place, place], color=colour, alpha=0.45, linewidth=3, label="to the median")
        panel.plot(low, place, "o", color=colour, markersize=6, label="fastest call")
        panel.annotate(number(low), (middle, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if block.bare is not None:
        bare = 1e3 * block.bare.minimum * block.rows[0].cost.nfe
        panel.axvline(bare, color=FAINT, linestyle="--", linewidth=1, label="bare field, compiled")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    panel.set_title(block.case.name)
    panel.set_xlabel("ms")


def _scale(panel: Axes) -> None:
    """Logarithmic, with room for the numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    low, high = low / 1.1, high * (high / low) ** 0.25
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(_places(low, high))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _places(low: float, high: float) -> Locator:
    """Of the numbers on an axis: powers of ten, these times 1, 2, 5, or, where the axis is short, at even distances."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if high < 10 * low:
        return MaxNLocator(4, steps=[1, 2, 5, 10])
    return LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0))
