"""How right predictions are: by class, and by the probability that they claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ndeflow.numerics.draws import coverage
from ndeflow.plots.style import BLUE, FAINT, INK, SKY, grid, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED, LEVELS = 20, tuple(0.05 * k for k in range(1, 20))


@styled
def confusion_matrix(target: Tensor, predicted: Tensor, classes: Sequence[str]) -> Figure:
    """How many rows of each class (down) were predicted as which (across); coloured by the share of the true class.

    target, predicted: (N,) int64. Counts are written for up to 20 classes.
    """
    size = len(classes)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (target.cpu().numpy(), predicted.cpu().numpy()), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * size, 2.6), 9.0)
    title = f"Confusion matrix: {np.trace(counts)} of {counts.sum()} right"
    figure, axes = grid(1, 1, side + 1.8, side + 0.9, title, layout="compressed")
    panel = axes[0][0]
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.grid(False)
    _name(panel, classes)
    if size <= NUMBERED:
        for (i, j), count in np.ndenumerate(counts):
            colour = "white" if shares[i, j] > 0.55 else INK if count else "#C0C0C0"
            panel.text(j, i, str(count), ha="center", va="center", color=colour)
    bar = figure.colorbar(image, ax=panel, label="share of the true class")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _name(panel: Axes, classes: Sequence[str]) -> None:
    places = range(0, len(classes), math.ceil(len(classes) / 30))
    names = [classes[i] for i in places]
    upright = max(map(len, names)) <= 3 and len(names) <= NUMBERED
    panel.set_xticks(places, names, rotation=0 if upright else 60, ha="center" if upright else "right",
                     rotation_mode="anchor" if not upright else None)  # fmt: skip
    panel.set_yticks(places, names)
    panel.set(xlabel="predicted", ylabel="true")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


@styled
def calibration(prediction: Tensor, ys: Tensor, scored: Tensor) -> Figure:
    """Share of held-back values inside central intervals of their draws, against the intervals' probability.

    A calibrated forecast lies on the diagonal; below it, its intervals are too narrow. Shaded: two standard errors of
    that many independent values, which neighbours in a series are not.

    prediction: (S, B, T, C). ys, scored: (B, T, C), scored bool.
    """
    draws, values = prediction.detach()[:, scored], ys[scored]
    count = values.numel()
    covered = np.array([coverage(draws, values, level).double().mean().item() for level in LEVELS])
    nominal = np.array(LEVELS)
    figure, axes = grid(1, 1, 4.6, 4.3, "Calibration")
    panel = axes[0][0]
    if count:
        error = 2 * np.sqrt(nominal * (1 - nominal) / count)
        panel.fill_between(nominal, nominal - error, nominal + error, color=SKY, alpha=0.25, linewidth=0,
                           label="two standard errors")  # fmt: skip
    panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="calibrated")
    panel.plot(nominal, covered, "o-", color=BLUE, markersize=4, label="forecast")
    at = LEVELS.index(0.05 * 18)
    text = f"the 90 % interval covers {100 * covered[at]:.0f} %\nof {count} values" if count else "no values"
    panel.text(0.97, 0.05, text, transform=panel.transAxes, ha="right")
    panel.set(xlabel="probability of the interval", ylabel="share of values inside", xlim=(0, 1), ylim=(0, 1))
    panel.set_aspect("equal")
    panel.legend(loc="upper left")
    return figure
