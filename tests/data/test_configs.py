"""configs/data: every keyword of a data set stands there, with its default."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import ndeflow.data
from ndeflow import resources
from ndeflow.data import DataModule

FOLDER = Path(__file__).parents[2] / "configs" / "data"
BUILT_IN = ("files", "archive", "lynx_hare", "influenza", "elnino", "rates", "returns", "spirals")


def keywords(kind: type[DataModule]) -> dict[str, Any]:
    own = inspect.signature(kind).parameters
    options = "options" in own
    every = {**inspect.signature(DataModule).parameters, **own} if options else own
    return {name: parameter.default for name, parameter in every.items() if name != "options"}


def test_gaps_are_the_same_data_with_months_hidden() -> None:
    plain, gaps = (resources.resolved(resources.compose([f"data={name}", "run_dir=x"]))["data"]
                   for name in ("elnino", "elnino_gaps"))  # fmt: skip
    assert gaps.pop("seen")["_target_"] == "ndeflow.data.Hidden" and plain.pop("seen") is None
    assert gaps == plain


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_keyword_and_its_default(name: str) -> None:
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    kind = getattr(ndeflow.data, config.pop("_target_").removeprefix("ndeflow.data."))
    expected = keywords(kind)
    assert set(config) == set(expected)
    for key, value in config.items():
        if key == "seed":
            assert value == "${seed}"
        elif value == "???":
            assert expected[key] is inspect.Parameter.empty
        else:
            assert value == expected[key] or [value, expected[key]] == [[], ()]
