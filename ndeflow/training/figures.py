"""The figures of a run, as files in its folder and in its trackers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ndeflow.models.failures import remaining
from ndeflow.training.trackers import send_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ndeflow.numerics.solution import Solution


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
    """The task's own figures of its model's answer to `batch`, and its dearest solve's trace; in evaluation mode.

    Rows whose solve failed are in the trace alone.
    """
    training = task.model.training
    task.model.eval()
    try:
        with torch.no_grad():
            output = task.model(batch)
            left = remaining(output, batch, {})
            own = {} if left.empty else task.figures(left.output, left.batch)
            return {**own, **_traces(output.solutions)}
    finally:
        task.model.train(training)


def _traces(solutions: Sequence[Solution]) -> dict[str, Figure]:
    """The trace of the solve with most evaluations, of those whose steps were chosen by an error."""
    judged = [solution for solution in solutions if solution.stats.error is not None]
    if not judged:
        return {}
    from ndeflow import plots

    return {"trace": plots.trace(max(judged, key=lambda solution: int(solution.stats.nfe.max())))}


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
