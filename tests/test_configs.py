"""Every configuration is an object of the class that it names, and every public class has one."""

from __future__ import annotations

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ndeflow import models, regularizers, resources, tasks
from ndeflow.contracts import Regularizer
from ndeflow.diffusion import Schedule
from ndeflow.fields.hidden import HiddenSDE
from ndeflow.generative.weightings import Weighting
from ndeflow.models import Model
from ndeflow.numerics.derivatives import Divergence
from ndeflow.numerics.paths import ControlPath
from ndeflow.numerics.solution import Adjoint, Solver
from ndeflow.tasks import Task
from ndeflow.tasks.losses import SeriesLoss

CONFIGS = resources.folder("configs")
KINDS = {
    "solver": Solver, "adjoint": Adjoint, "model": Model, "criterion": SeriesLoss, "divergence": Divergence,
    "schedule": Schedule, "weighting": Weighting,
}  # fmt: skip


def files(*groups):
    return [path for group in groups for path in sorted((CONFIGS / group).glob("*.yaml"))]


def made(path, group):
    """The object of a configuration, with everything it refers to at its defaults."""
    words = [f"{group}={path.stem}", "run_dir=x"]
    if group == "task":
        words.append("model=ode_forecaster")
    config = resources.compose(words)
    resources.update(config, sizes={"channels": 2, "classes": 3, "outputs": 3, "inputs": 1, "length": 5})
    return resources.instantiate(OmegaConf.to_container(config, resolve=True)[group])


@pytest.mark.parametrize("path", files(*KINDS), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_components_are_of_their_kind(path):
    assert isinstance(made(path, path.parent.name), KINDS[path.parent.name])


@pytest.mark.parametrize("path", files("model"), ids=lambda p: p.stem)
def test_a_model_that_reads_inputs_is_told_how_many_there_are(path):
    assert made(path, "model").reads_inputs == ("inputs" in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted((CONFIGS / "model").glob("*_classifier.yaml")), ids=lambda p: p.stem)
def test_classifiers_regress_as_many_numbers_as_the_data_have(path):
    config = resources.compose([f"model={path.stem}", "run_dir=x"])
    resources.update(config, sizes={"channels": 2, "classes": 0, "outputs": 2, "inputs": 0, "length": 5})
    model = resources.instantiate(OmegaConf.to_container(config, resolve=True)["model"])
    assert model.readout.out_features == 2


@pytest.mark.parametrize("path", files("task"), ids=lambda p: p.stem)
def test_tasks_take_their_parts_from_the_other_groups(path):
    task = made(path, "task")
    assert isinstance(task, Task) and isinstance(task.model, Model)
    optimizers = task.configure_optimizers()
    several = optimizers if isinstance(optimizers, list) else [optimizers]
    assert all(isinstance(one, torch.optim.Optimizer) for one in several)


@pytest.mark.parametrize("path", files("interpolation"), ids=lambda p: p.stem)
def test_interpolations_make_paths_of_observations(path):
    ts = torch.tensor([0.0, 1.0, 3.0])
    found = made(path, "interpolation")(ts, ts.view(1, 3, 1), torch.ones(1, 3, 1, dtype=torch.bool))
    assert isinstance(found, ControlPath) and type(found).__name__ == path.stem.title().replace("_", "")
    assert torch.equal(torch.cat([found.value(t) for t in found.at_observations()])[:, 0], ts)


@pytest.mark.parametrize("path", files("field"), ids=lambda p: p.stem)
def test_fields_are_made_for_the_hidden_state_of_a_model(path):
    field = made(path, "field")(4, inputs=3, width=8, depth=1)
    assert isinstance(field, HiddenSDE) and field.drift(torch.tensor(0.0), torch.ones(2, 4), torch.ones(2, 3)).ndim == 2
    config = resources.compose(["model=sde_classifier", f"field={path.stem}", "run_dir=x"])
    model = resources.instantiate(OmegaConf.to_container(config, resolve=True)["model"])
    assert type(model.sde) is type(field)


@pytest.mark.parametrize("path", files("optimizer"), ids=lambda p: p.stem)
def test_optimizers_take_parameters(path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = made(path, "optimizer")([weight])
    weight.square().sum().backward()
    optimizer.step()
    assert (weight < 1).all()


@pytest.mark.parametrize("path", files("scheduler"), ids=lambda p: p.stem)
def test_schedulers_take_an_optimizer(path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    assert made(path, "scheduler")(optimizer).optimizer is optimizer


def test_a_plateau_is_of_the_loss_also_where_the_best_weights_are_those_of_the_highest_score():
    words = ["model=ode_classifier", "task=classification", "scheduler=plateau", "scheduler.patience=0", "run_dir=x"]
    config = resources.compose([*words, "monitor=val/accuracy", "monitor_mode=max"])
    made = resources.instantiate(OmegaConf.to_container(config, resolve=True)["task"]).configure_optimizers()
    scheduler = made["lr_scheduler"]
    assert scheduler["monitor"] == "val/loss"
    for loss, share in ((3.0, 1.0), (2.0, 1.0), (2.5, 0.5)):
        scheduler["scheduler"].step(loss)
        assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(share * config.optimizer.lr)


def test_regularizers_compose_by_name():
    config = resources.compose(["regularizer=[global_error,end_time_jitter]", "run_dir=x"])
    found = resources.instantiate(OmegaConf.to_container(config.regularizer, resolve=True))
    assert list(found) == ["global_error", "end_time_jitter"]
    assert all(isinstance(one, Regularizer) for one in found.values())
    assert resources.compose(["regularizer=none", "run_dir=x"]).regularizer == {}


def test_every_public_class_has_a_configuration():
    named = {str(target).rpartition(".")[2] for path in files(*[p.name for p in CONFIGS.iterdir() if p.is_dir()])
             for target in targets(yaml.safe_load(path.read_text()))}  # fmt: skip
    families = {"Model", "NeuralODE", "NeuralCDE", "NeuralSDE", "ScoreModel", "Task"}
    public = {n for module in (models, regularizers, tasks) for n in module.__all__ if n[0].isupper()} - families
    assert public <= named
    assert {"RungeKutta", "FixedRungeKutta", "Stochastic", "TorchDiffEq", "TorchSDE"} <= named
    assert {"ExactDivergence", "HutchinsonDivergence"} <= named
    assert {"Direct", "Checkpointed", "Backsolve", "Reversible"} <= named


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
