"""Generated paths beside real ones, and how their increments are distributed and depend on one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec
from ndeflow.metrics import lagged_correlation
from ndeflow.plots.style import BLUE, INK, logarithmic, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THREADS = 40


@styled
def sampled_paths(batch: Batch, prediction: Tensor, spec: DataSpec, *, lags: int = 10) -> Figure:
    """Real and generated paths, the distribution of their increments, and these' correlations in time; first channel.

    The correlations: of squares with later squares, and of increments with later squares (leverage). prediction:
    (B, T, C), generated, as many as there are real ones, which are without gaps.
    """
    real, fake = (spec.to_data_units(x.detach().cpu().double())[..., 0] for x in (batch.ys, prediction))
    times = (batch.ts[0].cpu().double() * spec.time_scale).numpy()
    figure, (left, right, law, squares, leverage) = panels(5, 3.6, 2.7, f"Sampled paths: {spec.channels[0]}")
    for panel, paths, colour, name in ((left, real, INK, "real"), (right, fake, BLUE, "generated")):
        panel.plot(
            times, paths[:: max(1, len(paths) // THREADS)][:THREADS].T.numpy(), color=colour, linewidth=0.6, alpha=0.5
        )
        panel.set(title=name, xlabel="time")
    right.sharey(left)
    left.autoscale()
    steps = {"real": (real.diff(dim=1), INK), "generated": (fake.diff(dim=1), BLUE)}
    _densities(law, steps)
    for panel, title, power in ((squares, "squares, later squares", 2), (leverage, "increments, later squares", 1)):
        for name, (x, colour) in steps.items():
            found = lagged_correlation(x**power, x.square(), min(lags, x.shape[1] - 1)).numpy()
            panel.plot(np.arange(1, len(found) + 1), found, "o-", color=colour, markersize=3, label=name)
        panel.axhline(0, color=INK, linewidth=0.6)
        panel.set(title=f"correlation: {title}", xlabel="lag")
    law.legend()
    return figure


def _densities(panel: Axes, steps: dict[str, tuple[Tensor, str]]) -> None:
    """Densities of increments on a logarithmic scale, which shows their tails."""
    values = np.concatenate([x.flatten().numpy() for x, _ in steps.values()])
    low, high = np.quantile(values, [0.0005, 0.9995])
    edges = np.linspace(low, high, 41)
    look = {"density": True, "histtype": "step", "linewidth": 1.4}
    drawn = [panel.hist(x.flatten().numpy(), edges, color=c, label=name, **look) for name, (x, c) in steps.items()]
    heights = np.concatenate([heights for heights, *_ in drawn])
    panel.set(title="density of increments", xlabel="increment")
    logarithmic(panel.yaxis, heights.max() / heights[heights > 0].min())
