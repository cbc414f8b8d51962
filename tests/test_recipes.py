"""Every recipe says what it claims, composes with all its variants, and trains one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ndeflow import claims, resources
from ndeflow.data.loader import moved, take
from ndeflow.tasks import Task

RECIPES = resources.recipes()


@pytest.fixture(params=sorted(RECIPES))
def name(request):
    return request.param


def test_there_are_recipes_and_none_carries_classes_of_its_own():
    assert {"quickstart", "vowels", "elnino"} <= RECIPES.keys()
    for path in RECIPES.values():
        lines = path.read_text().splitlines()
        assert len(lines) <= 42 and not any("_target_" in line for line in lines), path


def test_a_recipe_states_paper_claim_minutes_and_bounds(name):
    config = resources.resolved(resources.compose([f"recipe={name}", "run_dir=x"]))
    assert all(config["about"][key] for key in ("paper", "claim", "minutes"))
    assert config["expect"]
    claims.check(config)


def train_one_batch(*words):
    """The task of a command line, with the gradients of a small batch."""
    config = resources.compose([*words, "run_dir=x"])
    data = resources.instantiate(resources.resolved(config.data))
    resources.update(config, sizes=data.sizes)
    torch.manual_seed(0)
    task = resources.instantiate(resources.resolved(config)["task"])
    assert isinstance(task, Task)
    task.spec = data.spec
    if config.trainer.precision == "64-true":
        task.double()
    batch = take(data.train, torch.arange(min(8, len(data.train.index))))
    batch = moved(batch, task.model, torch.device("cpu"))
    with task.model.prepared(task.regularizers) as preparation:
        loss, penalties = task.terms(task.model(batch), batch, preparation)
    (loss + sum(penalties.values())).backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())
    return task


def own_files(config, folder):
    """Overrides that give a recipe on the user's own images some, drawn at random."""
    if not config["data"]["_target_"].endswith(".Images"):
        return []
    images = np.random.default_rng(0).integers(0, 256, size=(100, 28, 28), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(100) % 10)
    return [f"data.root={folder}"]


def test_every_variant_and_cell_composes_and_trains_one_batch(name, tmp_path):
    plain = resources.resolved(resources.compose([f"recipe={name}", "run_dir=x"]))
    given = own_files(plain, tmp_path)
    for job in claims.jobs(name, plain, [0]):
        train_one_batch(f"recipe={name}", *given, *job.overrides)


@pytest.mark.parametrize("interpolation", ["linear", "hermite", "natural_cubic", "rectilinear"])
def test_every_interpolation_trains_one_batch(interpolation):
    """With values missing, rows of different lengths, and a solver whose save times must be knots."""
    model = train_one_batch("recipe=vowels", "data.drop=0.5", f"interpolation={interpolation}").model
    assert model.interpolation.func.__self__.__name__ == interpolation.title().replace("_", "")
