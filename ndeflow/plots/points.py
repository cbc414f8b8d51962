"""Clouds of points of the plane, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ndeflow.plots.style import grid, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE, MARGIN, RARE, FINE = 2.7, 0.05, 0.001, 100
COLOURS = "Blues"


class Square(NamedTuple):
    """A square of the plane, by its lowest corner and its side."""

    x: float
    y: float
    side: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return self.x, self.x + self.side, self.y, self.y + self.side


@styled
def points(
    clouds: Mapping[str, Tensor], *, densities: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> Figure:
    """The density of each cloud of points, a panel each, over one square and on one colour scale.

    Histograms, of as many cells as the smallest cloud fills. clouds: name -> (N, 2), in one unit; points that are not
    finite are left out, and of each coordinate a thousandth at either end may lie outside. densities: name -> function
    of points (N, 2), float64, that gives densities (N,), drawn beside them. Raises ValueError for no cloud, another
    shape, or a cloud without a finite point.
    """
    found = {name: _finite(name, cloud) for name, cloud in clouds.items()}
    if not found:
        raise ValueError("expected at least one cloud of points, got none; give a name and points (N, 2)")
    square = _around(list(found.values()))
    cells = int(np.clip(np.sqrt(min(map(len, found.values())) / 8), 16, 80))
    shown = {name: _histogram(cloud, square, cells) for name, cloud in found.items()}
    return _pictures(shown | {name: _evaluated(f, square) for name, f in (densities or {}).items()}, square)


def _pictures(densities: Mapping[str, np.ndarray], square: Square) -> Figure:
    """A row of densities (cells, cells), by place in x and in y, over `square`, on one colour scale from 0."""
    figure, axes = grid(1, len(densities), SIDE, SIDE, layout="compressed", sharex=True, sharey=True)
    positive = np.concatenate([density[density > 0] for density in densities.values()])
    top = np.quantile(positive, 0.99) if positive.size else 1.0  # a few cells may be denser than the scale tells apart
    images = [
        _picture(panel, name, density, square, top)
        for panel, (name, density) in zip(axes[0], densities.items(), strict=True)
    ]
    axes[0][0].set_ylabel("y")
    bar = figure.colorbar(images[0], ax=axes[0], label="density", fraction=0.05, extend="max")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _picture(panel: Axes, name: str, density: np.ndarray, square: Square, top: float) -> Any:
    panel.grid(False)
    panel.set(title=name, xlabel="x")
    return panel.imshow(density.T, cmap=COLOURS, vmin=0, vmax=top, origin="lower", extent=square.extent)


def _finite(name: str, cloud: Tensor) -> np.ndarray:
    """The finite points of a cloud as (N, 2)."""
    if cloud.dim() != 2 or cloud.shape[1] != 2:
        raise ValueError(f"expected {name} as points (N, 2), got {tuple(cloud.shape)}; choose two coordinates")
    cloud = cloud.detach().cpu().double()
    cloud = cloud[torch.isfinite(cloud).all(dim=1)]
    if not len(cloud):
        raise ValueError(f"expected a finite point in {name}, got none; leave the cloud out")
    return cloud.numpy()


def _around(clouds: list[np.ndarray]) -> Square:
    """The square, a little larger, around all points but the rarest."""
    ends = [np.quantile(cloud, [RARE, 1 - RARE], axis=0) for cloud in clouds]
    low, high = np.min([e[0] for e in ends], axis=0), np.max([e[1] for e in ends], axis=0)
    side = (1 + 2 * MARGIN) * (float((high - low).max()) or 1.0)
    x, y = (low + high) / 2 - side / 2
    return Square(float(x), float(y), side)


def _histogram(cloud: np.ndarray, square: Square, cells: int) -> np.ndarray:
    """The share of the cloud in each cell, by the cell's area: (cells, cells)."""
    left, right, low, high = square.extent
    counts = np.histogram2d(cloud[:, 0], cloud[:, 1], bins=cells, range=[[left, right], [low, high]])[0]
    return counts / (len(cloud) * (square.side / cells) ** 2)


def _evaluated(density: Callable[[Tensor], Tensor], square: Square) -> np.ndarray:
    """A density at the middle of each of FINE x FINE cells."""
    steps = (torch.arange(FINE, dtype=torch.float64) + 0.5) * (square.side / FINE)
    places = torch.cartesian_prod(square.x + steps, square.y + steps)
    return density(places).detach().cpu().double().view(FINE, FINE).numpy()
