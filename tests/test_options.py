"""Plain values held against the annotations of what they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from torch import Tensor

from ndeflow import request, resources
from ndeflow.data import Visibility
from ndeflow.options import fits, parameters
from ndeflow.resources import ConfigError

if TYPE_CHECKING:
    from nowhere import Unknown  # pyright: ignore[reportMissingImports]

RUN = ["data=files", "data.path=my.csv", "task=forecasting", "model=ode_forecaster", "solver=dopri5"]


class Base:
    def __init__(self, width: int = 1, *, depth: int = 1) -> None: ...


class Mine(Base):
    def __init__(self, own: Unknown, width: float = 1.0, rate=0.5, gap: int = None, **kwargs: Any) -> None: ...  # noqa: RUF013


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True), (1.5, int, False), (True, int, False), ("1", int, False), (None, int, False),
        (1, float, True), (0.5, float, True), ("abc", float, False), (False, float, False), (None, float | None, True),
        (1, bool, False), (True, bool | None, True), ("a", str | Path, True), ("a", Path, True), (3, str, False),
        (["a"], Sequence[str], True), ("ab", Sequence[str], False), ([1], Sequence[str], False), ([1], list, True),
        ([0.9, 1], tuple[float, float], True), (["a", 1], tuple[float, float], False),
        ([1, "b"], tuple[int, str], True), ([1], tuple[int, int], False), ([1, 2, 3], tuple[int, ...], True),
        ("sum", Literal["sum", "mean"], True), ("most", Literal["sum", "mean"], False),
        ("first", Visibility | None, False), ({"_target_": "ndeflow.data.First"}, Visibility | None, True),
        ("linear", Callable[[Tensor], Tensor] | None, False), ([1.0], Tensor, True), ("any", Any, True),
    ],
)  # fmt: skip
def test_what_a_value_fits(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) == expected


def test_parameters_are_those_of_the_bases_too() -> None:
    found = parameters(f"{__name__}.Mine")
    assert found["width"] is float and found["depth"] is int and found["own"] is Any
    assert found["rate"] is Any and found["gap"] == int | None
    assert parameters("ndeflow.data.Files")["eval_batch_size"] == int | None
    assert parameters("torch.optim.Adam")["fused"] == bool | None
    assert parameters("nowhere.Nothing") == {}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.seen=first", "data.seen to be {_target_: a Visibility, ...} or null, got 'first'"),
        ("data.sep=[1]", "data.sep to be text, got [1]"),
        ("data.channels=ab", "data.channels to be a list (each text) or null, got 'ab'"),
        ("data.time_scale=abc", "data.time_scale to be a number or null, got 'abc'"),
        ("model.width=1.5", "model.width to be a whole number, got 1.5"),
        ("solver.rtol=abc", "expected solver.rtol to be a number, got 'abc'"),
    ],
)
def test_an_option_of_another_kind_is_refused_before_the_run(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        request.read([*RUN, word])
    assert line in str(error.value)


@pytest.mark.parametrize("name", resources.recipes())
def test_the_options_of_all_recipes_fit(name: str) -> None:
    request.read([f"recipe={name}"])
