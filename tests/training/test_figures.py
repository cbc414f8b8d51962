from __future__ import annotations

import torch
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from ndeflow.training import figures
from ndeflow.training.figures import run_figures, task_figures, write_figures


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


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.PReLU(), nn.Dropout(0.5))
        self.seen: torch.Tensor | None = None

    def figures(self, output, batch) -> dict[str, Figure]:
        self.seen = output
        return {"prediction": picture()}


def test_a_task_draws_in_evaluation_mode_and_goes_on_training():
    task = Task()
    made = task_figures(task, torch.ones(8))
    assert list(made) == ["prediction"]
    assert task.seen is not None and torch.equal(task.seen, torch.ones(8)) and not task.seen.requires_grad
    assert task.training and task.model.training


def test_a_run_without_rows_has_no_curves():
    assert run_figures([]) == {}
