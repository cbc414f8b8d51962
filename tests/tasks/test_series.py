"""Tasks on series: what their data must have, and losses that do not depend on how a split is cut into batches."""

from __future__ import annotations

import pytest
import torch

from ndeflow.contracts import Series
from ndeflow.data import DataModule, Everything, First, Hidden, Visibility
from ndeflow.models import ODEForecaster, ODEInterpolator
from ndeflow.tasks import Forecasting, Interpolation
from ndeflow.tasks.base import Task
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


def test_a_forecast_beside_a_class_is_trained_where_something_is_hidden(tmp_path):
    for task, seen in ((forecasting(), First(2)), (interpolation(), Hidden(0.5))):
        fit(tmp_path / type(task).__name__, task, Waves(seen=seen))
        assert float(task.trainer.callback_metrics["val/loss"]) > 0
