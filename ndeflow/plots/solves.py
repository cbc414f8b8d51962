"""What a solver did: its steps, errors and stiffness along the way, and why they are what they are."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from ndeflow.numerics.adaptive import Adaptive
from ndeflow.numerics.course import Course
from ndeflow.numerics.diagnosis import diagnose
from ndeflow.numerics.solution import Solution
from ndeflow.plots.style import BLUE, FAINT, GREEN, INK, ORANGE, legend_below, panels, set_scale, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, LINE, DENSE, LEAST = 7.2, 80, 150, 1e-6


@styled
def trace(solution: Solution) -> Figure:
    """Step sizes of a solve over time, accepted and rejected; scaled local errors, and h times stiffness with the end
    of the method's stability interval, where the method estimates them. The title says why the solve is expensive.

    Shown are the attempts of the row that goes farthest, judged with the others; where rows step at their own pace,
    of the one that made most. Save times are ticks under the step sizes.
    """
    course, stats = Course.of(solution), solution.stats
    counts = f"{course.accepted.count(True)} accepted, {course.accepted.count(False)} rejected"
    judged = stats.error is not None and len(course.times) > 0
    stiff = bool(course.product)
    title = textwrap.fill(_sentence(solution), LINE)
    figure, axes = panels(1 + judged + stiff, WIDTH, 2.1, title, most=1)
    figure.set_figheight(figure.get_figheight() + 0.2 * title.count("\n"))
    _steps(axes[0], course, solution)
    axes[0].set_title(f"step size: {counts}, {int(stats.nfe.max())} evaluations")
    if judged:
        _errors(axes[1], course)
    if stiff:
        _products(axes[-1], course, solution)
    axes[-1].set_xlabel("time")
    for panel in axes[1:]:
        panel.sharex(axes[0])
    legend_below(figure, axes)
    return figure


def _sentence(solution: Solution) -> str:
    sentence = diagnose(solution).sentence
    return sentence[0].upper() + sentence[1:]


def _steps(panel: Axes, course: Course, solution: Solution) -> None:
    """Each attempt at the middle of its step, and the save times."""
    sizes = np.abs(course.steps)
    _attempts(panel, course, sizes)
    set_scale(panel.yaxis, sizes)
    ts = solution.problem.ts.detach()
    ts = ts if ts.dim() == 1 else ts[int((ts[:, -1] - ts[:, 0]).abs().argmax())]
    if len(ts) <= DENSE:
        panel.plot(ts.cpu().numpy(), np.zeros(len(ts)), "|", color=INK, markersize=7, label="save time",
                   transform=panel.get_xaxis_transform(), clip_on=False)  # fmt: skip


def _errors(panel: Axes, course: Course) -> None:
    errors = np.array(course.error)
    errors = np.where(np.isfinite(errors), np.maximum(errors, LEAST), np.nan)
    _attempts(panel, course, errors)
    panel.axhline(1.0, color=FAINT, linewidth=1, linestyle="--", label="limit")
    panel.set_title("local error / tolerance")
    set_scale(panel.yaxis, errors)


def _products(panel: Axes, course: Course, solution: Solution) -> None:
    middles, products = _middles(course)[np.array(course.accepted)], np.array(course.product)
    if isinstance(solution.solver, Adaptive):
        limit = solution.solver.stability
        panel.axhline(limit, color=FAINT, linewidth=1, linestyle="--", label="limit")
        panel.set_ylim(0.0, 2 * limit)
        products = products.clip(max=1.95 * limit)
    panel.plot(middles, products, ".", color=GREEN, markersize=_size(len(products)), label="step size times stiffness")
    panel.set_title("step size times stiffness: near the line, stability limits the step")


def _attempts(panel: Axes, course: Course, values: np.ndarray) -> None:
    """Points, and a line through the accepted ones."""
    kept, middles = np.array(course.accepted, dtype=bool), _middles(course)
    size = _size(len(values))
    panel.plot(middles[kept], values[kept], ".-", color=BLUE, markersize=size, linewidth=0.7, label="accepted")
    if not kept.all():
        panel.plot(middles[~kept], values[~kept], "x", color=ORANGE, markersize=0.7 * size, markeredgewidth=0.9,
                   label="rejected")  # fmt: skip


def _middles(course: Course) -> np.ndarray:
    return np.array(course.times) + np.array(course.steps) / 2


def _size(count: int) -> float:
    return 6.0 if count <= DENSE else 3.0
