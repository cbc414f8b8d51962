"""configs/data: every keyword of a data set stands there, with its default."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import ndeflow.data
from ndeflow.data import DataModule

FOLDER = Path(__file__).parents[2] / "configs" / "data"
BUILT_IN = ("files", "archive", "lynx_hare", "influenza", "elnino", "rates", "returns")


def keywords(kind: type[DataModule]) -> dict[str, Any]:
    own = inspect.signature(kind).parameters
    options = "options" in own
    every = {**inspect.signature(DataModule).parameters, **own} if options else own
    return {name: parameter.default for name, parameter in every.items() if name != "options"}


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
