"""What a solver did: its steps, errors and stiffness along the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ndeflow.numerics.solution import Solution
from ndeflow.plots.style import BLUE, FAINT, GREEN, ORANGE, legend_below, panels, set_scale, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def mesh(solution: Solution, row: int = 0) -> Figure:
    """Sizes of the accepted steps of one row over time; local errors and stiffness where the method estimates them."""
    stats = solution.stats
    taken = (stats.steps[row] != 0).cpu().numpy()
    starts = stats.times[row].detach().cpu().double().numpy()[taken]
    sizes = stats.steps[row].detach().cpu().double().numpy()[taken]
    estimates = [("local error / tolerance", stats.error, ORANGE), ("stiffness (1 / time)", stats.stiffness, GREEN)]
    known = [(name, value[row].detach().cpu().double().numpy()[taken], colour)
             for name, value, colour in estimates if value is not None]  # fmt: skip
    counts = (
        f"{int(stats.accepted[row])} accepted, {int(stats.rejected[row])} rejected, {int(stats.nfe[row])} evaluations"
    )
    figure, axes = panels(1 + len(known), 7.2, 2.2, f"Steps of a solve: {counts}", most=1)
    _steps(axes[0], starts, sizes)
    for panel, (name, values, colour) in zip(axes[1:], known, strict=True):
        panel.plot(starts + sizes / 2, values, "o-", color=colour, markersize=3.5, linewidth=1)
        panel.set_title(name)
        set_scale(panel.yaxis, values)
        if name.startswith("local"):
            panel.axhline(1.0, color=FAINT, linewidth=1, linestyle="--", label="tolerance")
    axes[-1].set_xlabel("time")
    for panel in axes[1:]:
        panel.sharex(axes[0])
    legend_below(figure, axes)
    return figure


def _steps(panel: Axes, starts: np.ndarray, sizes: np.ndarray) -> None:
    """Each step as a level line from its start to its end."""
    panel.hlines(abs(sizes), starts, starts + sizes, color=BLUE, linewidth=2.2)
    panel.plot(starts + sizes / 2, abs(sizes), ".", color=BLUE, markersize=4)
    panel.set_title("step size")
    set_scale(panel.yaxis, abs(sizes))
