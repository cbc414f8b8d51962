"""What variants of a training reach, against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from ndeflow.plots.style import CYCLE, FAINT, INK, grid, legend_below, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Mapping[str, float]]]
MARKERS = "os^DvP"


@styled
def pareto(runs: Runs, score: str, costs: Mapping[str, str], *, title: str = "", higher: bool = True) -> Figure:
    """A score against each cost: mean over seeds and its standard error of every variant, in a panel a cost.

    A line joins the variants that no other beats in both. runs: by variant, one mapping of results a seed. score: name
    of a result, the more the better, or with higher=False the less. costs: names of results, and what they are called.
    Raises ValueError where no variant has score and cost.
    """
    known = {
        name: results
        for name, results in runs.items()
        if results and all(key in result for result in results for key in (score, *costs))
    }
    if not known:
        raise ValueError(f"expected runs with {score}, {', '.join(costs)}, got {', '.join(runs) or 'none'}")
    figure, axes = grid(1, len(costs), 4.6, 4.0, title, sharey=True)
    for panel, (cost, label) in zip(axes[0], costs.items(), strict=True):
        middle = {name: [_mean(results, key) for key in (cost, score)] for name, results in known.items()}
        _front(panel, np.array(list(middle.values())), higher=higher)
        for (name, results), (colour, marker) in zip(known.items(), _looks(), strict=False):
            panel.errorbar(*middle[name], xerr=_error(results, cost), yerr=_error(results, score), fmt=marker,
                           color=colour, ecolor=colour, elinewidth=0.8, markersize=7, markeredgecolor="white",
                           label=name)  # fmt: skip
        panel.set_xlabel(label)
        panel.margins(x=0.08)
        panel.set_xlim(left=0)
    axes[0][0].set_ylabel(score.rpartition("/")[2])
    legend_below(figure, axes[0])
    return figure


def _front(panel: Axes, points: np.ndarray, *, higher: bool) -> None:
    """The steps between the points (N, 2), of cost and score, that no other beats in both."""
    found = points[dominant(points, higher=higher)]
    panel.step(found[:, 0], found[:, 1], where="post", color=FAINT, linewidth=1, linestyle="--", zorder=0)
    panel.scatter(found[:, 0], found[:, 1], s=130, facecolor="none", edgecolor=INK, linewidth=0.8, zorder=3)


def dominant(points: np.ndarray, *, higher: bool = True) -> list[int]:
    """Which of the points (N, 2), of cost and score, no other one beats in both, from the cheapest to the dearest."""
    gain = points[:, 1] if higher else -points[:, 1]
    best, chosen = -np.inf, []
    for n in np.lexsort((-gain, points[:, 0])):
        if gain[n] > best:
            best, chosen = gain[n], [*chosen, int(n)]
    return chosen


def _looks() -> list[tuple[str, str]]:
    """Colours and markers: as many as there are pairs of them, neighbours unlike in both."""
    return [(colour, marker) for shift in range(len(MARKERS)) for colour, marker in
            zip(CYCLE, cycle(MARKERS[shift:] + MARKERS[:shift]), strict=False)]  # fmt: skip


def _mean(results: Sequence[Mapping[str, float]], key: str) -> float:
    return float(np.mean([result[key] for result in results]))


def _error(results: Sequence[Mapping[str, float]], key: str) -> float:
    return float(np.std([result[key] for result in results], ddof=1)) / len(results) ** 0.5 if len(results) > 1 else 0.0
