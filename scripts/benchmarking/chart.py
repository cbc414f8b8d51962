"""The times of all cases as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarking.block import Block
from benchmarking.table import number
from ndeflow.plots.style import BLUE, FAINT, ORANGE, legend_below, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def times(blocks: Sequence[Block], title: str) -> Figure:
    """A panel a case: of each system the fastest call (dot, its ms beside it) and the median (end of the line).

    The dashed line is the bare field's: as many compiled evaluations as the first system makes.
    """
    height = 0.9 + 0.27 * max(len(block.rows) for block in blocks)
    figure, axes = panels(len(blocks), 4.6, height, title)
    for panel, block in zip(axes, blocks, strict=True):
        _draw(panel, block)
        _scale(panel)
    legend_below(figure, axes)
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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(low / 1.1, high * (high / low) ** 0.15)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
