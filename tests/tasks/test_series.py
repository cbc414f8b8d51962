"""Tasks on series: what their data must have, and losses that do not depend on how a split is cut into batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ndeflow.contracts import Batch, DataSpec, GaussianOutput, Output, Series
from ndeflow.data import DataModule, Everything, First, Hidden, Visibility
from ndeflow.data.loader import EvaluationBatches
from ndeflow.metrics import Averages
from ndeflow.models import CDEClassifier, ODEForecaster, ODEInterpolator
from ndeflow.models.base import Model
from ndeflow.tasks import Classification, Forecasting, Interpolation, Regression, Variational
from ndeflow.tasks.base import Task
from ndeflow.tasks.series import SeriesTask
from tests.training import tiny_training as tiny


class Waves(DataModule):
    """Twenty series of four times, each with a class."""

    def series(self) -> Series:
        ts, phase = torch.arange(4.0).expand(20, 4), torch.arange(20.0)[:, None]
        return Series(ts, torch.sin(ts + phase)[..., None], target=[i % 2 for i in range(20)])


class HiddenInTests(Waves):
    def visible(self, split, ts, mask, index):
        return mask if split == "train" else First(1).seen(mask, index)


def forecasting() -> Task:
    return Forecasting(ODEForecaster(1, hidden=3, width=4), torch.optim.SGD)


def interpolation() -> Task:
    return Interpolation(ODEInterpolator(1, hidden=3, width=4, depth=1), torch.optim.SGD)


def fit(folder, task: Task, data: DataModule) -> None:
    task.spec = data.spec
    tiny.make_trainer(folder, 1).fit(task, datamodule=data)


@pytest.mark.parametrize("seen", [None, Everything(), First(4)])
def test_a_forecast_of_nothing_is_refused_before_training(tmp_path, seen: Visibility | None):
    message = r"got none in train, val, test; leave out data\.target, .*'data\.seen={_target_: ndeflow\.data\.First, "
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, forecasting(), Waves(seen=seen))
    assert not (tmp_path / "checkpoints").exists()


def test_an_interpolation_is_trained_on_what_it_reads_but_not_judged_on_it(tmp_path):
    with pytest.raises(ValueError, match=r"got none in val, test; .*ndeflow\.data\.Hidden"):
        fit(tmp_path, interpolation(), Waves())
    fit(tmp_path / "hidden", interpolation(), HiddenInTests())
    with pytest.raises(ValueError, match="got none in train; "):
        fit(tmp_path, forecasting(), HiddenInTests())


def test_splits_of_other_data_modules_are_their_own_affair(monkeypatch):
    data = SimpleNamespace(train=[1, 2], val=[3], test=None)
    monkeypatch.setattr(SeriesTask, "trainer", SimpleNamespace(datamodule=data))
    forecasting().setup("fit")
    assert data.train == [1, 2]


def test_a_forecast_beside_a_class_is_trained_where_something_is_hidden(tmp_path):
    for task, seen in ((forecasting(), First(2)), (interpolation(), Hidden(0.5))):
        fit(tmp_path / type(task).__name__, task, Waves(seen=seen))
        assert float(task.trainer.callback_metrics["val/loss"]) > 0


def test_inputs_that_a_model_does_not_read_are_refused():
    spec, seen = DataSpec(("y",), (0.0,), (1.0,), statics=("age",)), forecasting()
    with pytest.raises(ValueError, match=r"reads the inputs \['age'\] of the data, got CDEClassifier; .*statics=\[\]"):
        Classification(CDEClassifier(1, 2, hidden=3, width=4), torch.optim.SGD).spec = spec
    seen.spec = spec
    assert seen.spec == spec


def test_classes_are_no_numbers_to_regress():
    task = Regression(CDEClassifier(1, 2, hidden=3, width=4), torch.optim.SGD)
    with pytest.raises(ValueError, match=r"got the 2 classes 50001, 50002, \.\.\.; set data\.task=regression"):
        task.spec = DataSpec(("y",), (0.0,), (1.0,), classes=("50001", "50002"))


def test_numbers_are_regressed_in_model_units_and_judged_in_their_own():
    task, rows = Regression(Guess(), torch.optim.SGD), split(torch.tensor([[0.0], [1.0], [-0.5]]))
    task.spec = DataSpec(("y",), (0.0,), (1.0,), target_mean=(50000.0,), target_std=(2.0,))
    output = Output(torch.tensor([[0.0], [1.0], [0.5]]))
    assert float(task.loss(output, rows)) == pytest.approx(1 / 3)
    averages = Averages()
    averages.add(task.metrics(output, rows))
    assert averages.compute() == {"rmse": pytest.approx(2 / math.sqrt(3))}


class Guess(Model):
    """Without a solve: of every value 0.5 less than it is, of every row its last value as a score."""

    @property
    def dynamics(self) -> nn.Module:
        return self

    def forward(self, batch: Batch) -> Output:
        if batch.target is not None:
            score = batch.ys[:, -1] + batch.ys[:, :1, 0]
            return Output(torch.cat([score, -score], dim=1) if not batch.target.is_floating_point() else score)
        mean = 0.5 * batch.ys
        return GaussianOutput(mean, kl=batch.index.double(), mean=mean[None], std=torch.tensor([2.0]).double())


def split(target: Any = None) -> Batch:
    """Rows of 2, 9 and 5 observed values, of which the first is seen."""
    lengths = torch.tensor([2, 9, 5, 2, 9])
    ts = torch.arange(9.0).expand(5, 9)
    mask = (ts < lengths[:, None])[..., None]
    ys = (ts + lengths[:, None]).double()[..., None] * mask
    return Batch(ts, ys, mask, First(1).seen(mask, lengths), target, None, torch.arange(5))


CLASSES, NUMBERS = torch.tensor([0, 1, 1, 1, 0]), torch.arange(5.0).double()[:, None]


@pytest.mark.parametrize(
    ("made", "target"),
    [
        (Forecasting, None),
        (Interpolation, None),
        (Variational, None),
        (Classification, CLASSES),
        (lambda *parts: Classification(*parts, balanced=True), CLASSES),
        (Regression, NUMBERS),
    ],
)
def test_the_loss_of_a_split_is_that_of_all_its_rows_however_it_is_cut(made, target):
    task, losses = made(Guess(), torch.optim.SGD), []
    task.spec, rows = DataSpec(("y",), (0.0,), (1.0,), class_weights=(1.25, 5 / 6)), split(target)
    for size in (1, 2, 5):
        task._averages = Averages()
        for part in EvaluationBatches(rows, size):
            task._evaluate(part)
        losses.append(task._averages.compute()["loss"])
    whole = float(task.loss(task.model(rows), rows))
    assert losses == pytest.approx([whole] * 3, rel=1e-6)
