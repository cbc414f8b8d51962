"""The figures of a run, as files in its folder and in its trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ndeflow.training.trackers import send_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(Protocol):
    """What of a task is needed to draw: a LightningModule with a model and `figures(output, batch)`."""

    @property
    def model(self) -> torch.nn.Module: ...

    def figures(self, output: Any, batch: Any) -> dict[str, Figure]: ...


def run_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """Learning curves and evaluations over training, from the rows of metrics.csv; nothing if there are none."""
    if not rows:
        return {}
    from ndeflow import plots

    made = {"learning_curves": plots.learning_curves, "evaluations": plots.evaluations}
    return {name: draw(rows) for name, draw in made.items()}


def task_figures(task: Drawing, batch: Any) -> dict[str, Figure]:
    """The task's own figures of its model's answer to `batch`, in evaluation mode."""
    training = task.model.training
    task.model.eval()
    try:
        with torch.no_grad():
            return task.figures(task.model(batch), batch)
    finally:
        task.model.train(training)


@rank_zero_only
def write_figures(figures: Mapping[str, Figure], folder: Path, loggers: Iterable[Logger] = ()) -> None:
    """Save each figure as folder/NAME.png and send it to the trackers that show figures."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    loggers = list(loggers)
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        pyplot.close(figure)
        for logger in loggers:
            send_figure(logger, name, path)
