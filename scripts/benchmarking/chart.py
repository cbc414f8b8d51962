"""The times of all cases as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarking.block import Block
from benchmarking.table import number
from ndeflow.plots.style import BLUE, FAINT, ORANGE, panels, styled

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
    return figure


def _draw(panel: Axes, block: Block) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = [row.system for row in block.rows]
    for place, row in enumerate(block.rows):
        low, middle = 1e3 * row.times.minimum, 1e3 * row.times.median
        colour = BLUE if row.system.startswith("ndeflow") else ORANGE
        panel.plot([low, middle], [place, place], color=colour, alpha=0.45, linewidth=3)
        panel.plot(low, place, "o", color=colour, markersize=6)
        panel.annotate(number(low), (middle, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if block.bare is not None:
        panel.axvline(1e3 * block.bare.minimum * block.rows[0].cost.nfe, color=FAINT, linestyle="--", linewidth=1)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.set_xlim(low / 1.1, high * (high / low) ** 0.12)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    panel.set_title(block.case.name)
    panel.set_xlabel("ms")
