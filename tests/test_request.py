"""What a command line may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ndeflow import request, resources
from ndeflow.resources import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of the quickstart, as far as a request reads it."""
    config = request.read(["recipe=quickstart"]).config
    (tmp_path / "config.yaml").write_text(resources.to_yaml(resources.resolved(config)))
    return tmp_path


def test_a_resumed_run_may_be_compared_with_other_references(run: Path) -> None:
    asked = request.read([f"resume={run}", "references=vowels"])
    assert asked.config.references == "vowels" and asked.changed


def test_a_resumed_run_keeps_its_model(run: Path) -> None:
    with pytest.raises(ConfigError, match="a resumed run keeps its model.width"):
        request.read([f"resume={run}", "model.width=3"])


@pytest.mark.parametrize(
    "word",
    ["interpolation=linear", "divergence=exact", "weighting=likelihood", "field=langevin",
     "schedule=variance_preserving"],
)  # fmt: skip
def test_a_group_that_nothing_reads_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"reads {word.partition('=')[0]}, got none; leave out {word}"):
        request.read(["recipe=quickstart", word])


@pytest.mark.parametrize(
    "reference", ["${solver}", "${ solver }", "${..solver}", "${oc.select:solver}", "${solver.rtol}"]
)
def test_a_group_is_read_by_whatever_names_it(reference: str) -> None:
    request._check_read(["solver=dopri5"], OmegaConf.create({"model": {"solver": reference}}))
    with pytest.raises(ConfigError, match="reads solver, got none"):
        request._check_read(["solver=dopri5"], OmegaConf.create({"model": {"solver": "solver"}}))


def test_groups_that_are_read_may_be_chosen_or_left_out() -> None:
    words = ["model=cde_classifier", "task=classification", "data=digits", "trainer=ddp", "logger=wandb"]
    request.read([*words, "interpolation=linear", "solver=tsit5", "adjoint=direct", "regularizer=none", "field=null"])
