from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from ndeflow import FixedRungeKutta, Output, RungeKutta, solve
from ndeflow.numerics.some import held
from ndeflow.training import figures
from ndeflow.training.figures import run_figures, task_figures, write_figures
from tests.tasks.test_failures import batch


def picture() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    return figure


def test_files_are_written_and_sent(tmp_path, monkeypatch):
    sent: list[tuple[Logger, str, bool]] = []
    monkeypatch.setattr(figures, "send_figure", lambda logger, name, path: sent.append((logger, name, path.exists())))
    loggers: list = ["first", "second"]
    write_figures({"a": picture(), "b": picture()}, tmp_path / "plots", loggers)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["a.png", "b.png"]
    assert imread(tmp_path / "plots" / "a.png").shape[1] > 150
    assert sent == [("first", "a", True), ("second", "a", True), ("first", "b", True), ("second", "b", True)]


class Solving(nn.Module):
    """Two solves, one without errors, that a trace can not be drawn of."""

    def forward(self, batch):
        rows = nn.functional.dropout(batch[:, None], 0.5, self.training)
        solvers = RungeKutta(), FixedRungeKutta()
        solutions = tuple(solve(lambda t, y: -y, rows, torch.tensor([0.0, 1.0]), solver=solver) for solver in solvers)
        return Output(rows[:, 0], solutions[: self.solves])

    solves = 2


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Solving()
        self.seen: torch.Tensor | None = None

    def figures(self, output, batch) -> dict[str, Figure]:
        self.seen = output.prediction
        return {"prediction": picture()}


def test_a_task_draws_in_evaluation_mode_and_goes_on_training():
    task = Task()
    made = task_figures(task, torch.ones(8))
    assert list(made) == ["prediction", "trace"] and "3 accepted" in made["trace"].axes[0].get_title(loc="left")
    assert task.seen is not None and torch.equal(task.seen, torch.ones(8)) and not task.seen.requires_grad
    assert task.training and task.model.training


class Blocked(nn.Module):
    """Rows of a negative start are not solved."""

    def forward(self, batch):
        def field(t, y):
            return torch.where(y < 0, torch.nan, -y)

        ts = batch.ts[0].float()
        solver = RungeKutta(batching="per_sample", on_failure="mask", compile="off")
        solution = held(solve(field, batch.ys[:, 0].float(), ts, solver=solver))
        return Output(solution.ys, (solution,))


def test_rows_that_failed_are_not_drawn():
    task, data = Task(), batch(0.1, -0.2, 0.3)
    task.model = Blocked()
    assert list(task_figures(task, data)) == ["prediction", "trace"]
    assert task.seen is not None and task.seen[:, 0, 0].tolist() == pytest.approx([0.1, 0.3])
    assert list(task_figures(task, batch(-0.1, -0.2))) == ["trace"]


def test_no_trace_without_a_solve():
    task = Task()
    task.model.solves = 0
    assert list(task_figures(task, torch.ones(8))) == ["prediction"]


def test_a_run_without_rows_has_no_curves():
    assert run_figures([]) == {}
