"""A run comes back as the model it was, and nothing that was not trusted is imported or called."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ndeflow.contracts import Batch, DataSpec
from ndeflow.load import build, load, read_run, trusted
from ndeflow.models import ODEForecaster
from ndeflow.training.checkpoints import CheckpointError, write_checkpoint

SPEC = DataSpec(("a", "b"), (1.0, 2.0), (3.0, 4.0), time_scale=2.0)
MODEL = {
    "_target_": "ndeflow.models.ODEForecaster",
    "channels": 2,
    "hidden": 4,
    "width": 5,
    "solver": {"_target_": "ndeflow.numerics.explicit.RungeKutta", "method": "tsit5", "rtol": 1e-3},
}


def save(path, model: nn.Module, config: Mapping[str, Any] = MODEL, format: int = 1) -> None:
    """A checkpoint as a task writes it."""
    own = {"format": format, "config": yaml.safe_dump({"model": dict(config)}), "spec": SPEC.to_dict()}
    weights = {f"model.{name}": w for name, w in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"state_dict": {**weights, "regularizers.x.w": torch.ones(1)}, "ndeflow": own}, path)


def forecaster() -> ODEForecaster:
    return ODEForecaster(2, hidden=4, width=5)


@pytest.fixture
def run(tmp_path):
    """A run folder whose best weights are all 0.5, and its last all 1."""
    model = forecaster()
    for name, value in {"best": 0.5, "last": 1.0}.items():
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        save(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", model)
    return tmp_path / "run"


def first_weight(model: nn.Module) -> float:
    return next(iter(model.parameters())).flatten()[0].item()


def test_the_best_weights_come_back_in_evaluation_mode(run):
    model = load(run)
    assert isinstance(model, ODEForecaster) and not model.training
    assert first_weight(model) == 0.5 and model.spec == SPEC
    assert (model.solver.method, model.solver.rtol) == ("tsit5", 1e-3)
    ts = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    mask = torch.tensor([[[True], [True], [False]]]).expand(1, 3, 2)
    batch = Batch(ts, torch.ones(1, 3, 2), mask, mask, None, None, torch.tensor([0]))
    assert model(batch).prediction.shape == (1, 3, 2)


def test_the_public_name_is_called_whoever_imported_the_module_first(run):
    import ndeflow.sample  # imports the module ndeflow.load

    assert first_weight(ndeflow.load(run)) == 0.5


def test_a_checkpoint_can_be_named(run):
    assert first_weight(load(run / "checkpoints" / "last.ckpt")) == 1.0


def test_a_run_without_validation_gives_its_last_weights(run):
    (run / "checkpoints" / "best.ckpt").unlink()
    assert first_weight(load(str(run))) == 1.0


def test_the_precision_of_training_is_kept(tmp_path):
    save(tmp_path / "x.ckpt", forecaster().double())
    assert next(load(tmp_path / "x.ckpt").parameters()).dtype == torch.float64


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="found nothing at"):
        load(tmp_path / "no")
    with pytest.raises(CheckpointError, match="found no file"):
        load(tmp_path)


def test_another_format(tmp_path):
    save(tmp_path / "x.ckpt", forecaster(), format=2)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, got 2"):
        load(tmp_path / "x.ckpt")


def test_other_weights(tmp_path):
    save(tmp_path / "x.ckpt", forecaster(), {**MODEL, "hidden": 6})
    with pytest.raises(ValueError, match="expected the weights of ODEForecaster"):
        load(tmp_path / "x.ckpt")


def test_arguments_that_the_class_no_longer_takes(tmp_path):
    save(tmp_path / "x.ckpt", forecaster(), {**MODEL, "colour": "red"})
    with pytest.raises(ValueError, match="does not take the arguments of this run .*colour"):
        load(tmp_path / "x.ckpt")


def test_what_is_no_model(tmp_path):
    save(tmp_path / "x.ckpt", forecaster(), {"_target_": "torch.nn.Linear", "_args_": [1, 2]})
    with pytest.raises(ValueError, match="expected a run of an ndeflow.Model, got Linear"):
        load(tmp_path / "x.ckpt")


MINE = """
from ndeflow import NeuralODE
class Mine(NeuralODE):
    def field(self, t, y):
        return -y
"""


def test_a_class_of_the_user_must_be_named(tmp_path, monkeypatch):
    (tmp_path / "mine_to_trust.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / "x.ckpt", nn.Module(), {"_target_": "mine_to_trust.Mine"})
    with pytest.raises(ValueError, match=r'not of ndeflow, .*say so: trust=\["mine_to_trust.Mine"\]'):
        load(tmp_path / "x.ckpt")
    assert "mine_to_trust" not in sys.modules  # not even imported
    assert type(load(tmp_path / "x.ckpt", trust=["mine_to_trust.Mine"])).__name__ == "Mine"


FOREIGN = [
    "os.system",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "torch.optimizer.x",
    "ndeflowing.x",
    "ndeflow.load.import_module",  # a function of another package
    "ndeflow.load.load",  # a function, which would trust anew
    "ndeflow.load.Path",  # a class of another package
    "ndeflow.load.torch.hub.load",
    "ndeflow.training.provenance.subprocess.Popen",
    "torch.nn.functional.torch.serialization.load",
    "ndeflow.models.base.Model.__class__",
    "ndeflow.load.Run.__init__.__globals__.get",
    ["os.system"],
]


@pytest.mark.parametrize("name", FOREIGN, ids=str)
def test_foreign_code_is_refused_wherever_it_stands(name):
    call = {"_target_": name, "_args_": ["exit 1"]}
    for node in (
        call,
        {"a": [{"b": call}]},
        {"_target_": "torch.nn.ReLU", "_args_": [call]},
        {**MODEL, "solver": call},
    ):
        with pytest.raises(ValueError, match="this run needs"):
            build(node, trust={"mine.Model"})


def test_ours_and_torchs_are_trusted():
    assert trusted("torch.nn.Linear") is nn.Linear
    assert trusted("torch.optim.AdamW") is torch.optim.AdamW
    assert trusted("torch.optim.lr_scheduler.CosineAnnealingLR") is torch.optim.lr_scheduler.CosineAnnealingLR
    assert trusted("ndeflow.models.forecasters.ODEForecaster") is ODEForecaster


def test_a_name_that_is_not_there():
    for name in ("ndeflow.models.Nothing", "ndeflow.nothing.Nothing", "ndeflow.models.base.Model.nothing"):
        with pytest.raises(ValueError, match=f"found no {name}"):
            trusted(name)


def test_partial_calls_and_plain_values():
    made = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    parameter = nn.Parameter(torch.ones(1))
    assert made([parameter]).param_groups[0]["lr"] == 0.5
    assert build({"a": [1, "${oc.env:HOME}"]}) == {"a": [1, "${oc.env:HOME}"]}


def test_what_a_run_knows(run):
    known = read_run(run)
    assert known.checkpoint == run / "checkpoints" / "best.ckpt" and known.config["model"] == MODEL
