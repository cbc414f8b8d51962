"""Interest rates as transitions: the next value, given this one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.data.cells import complete
from ndeflow.data.notices import MissingData, installed
from ndeflow.data.table import read_csv


@dataclass(frozen=True)
class Source:
    """A series in an installed package: its file there, the line that installs it, a column, maybe less another."""

    package: str
    path: str
    install: str
    column: str
    less: str | None = None


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "spread": Source(
            "arch", "data/default/default.csv.gz", "pip install --no-deps arch==8.0.0", "BAA", less="AAA",
        ),
        "tbill": Source(
            "statsmodels", "datasets/macrodata/macrodata.csv", "pip install statsmodels", "tbilrate",
        ),
    }
)  # fmt: skip
TRAINED = 0.7  # of the series, in time
FLOOR = 0.02  # per cent; below it the references' variance does not fall with the level
POWERS = {"vasicek": 0, "cir": 1, "brennan_schwartz": 2}


@final
class Rates(DataModule):
    """Pairs of successive values of a rate (per cent): a row's first is seen, its second is scored.

    name: "spread", Moody's BAA less AAA yield, monthly 1919-2018, or "tbill", the three-month Treasury bill rate,
    quarterly 1959-2009, of whose test values a third lie below all training values. Times are in steps. The first
    70 % of the series are for training, 15 % of those pairs, drawn at random, for validation: given the present, the
    past of a diffusion says nothing of its future. path: the package's file; None: the installed one. Raises
    ValueError for other names, MissingData with the install line if the file is not there.
    """

    channel_names = ("rate",)

    def __init__(
        self,
        *,
        name: str = "spread",
        path: str | Path | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        standardise: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, split_seed=split_seed,
                         standardise=standardise)  # fmt: skip
        if name not in SOURCES:
            raise ValueError(f"expected data.name {' or '.join(SOURCES)}, got {name!r}")
        self.source = SOURCES[name]
        self.path = None if path is None else Path(path)

    def series(self) -> Mapping[str, Series]:
        known, rest = self._divided_values()
        return {"train": _pairs(known), "test": _pairs(rest)}

    def values(self) -> Tensor:
        """(N,) float64: the whole series."""
        path = self.path or installed(self.source.package, self.source.path, self.source.install)
        if not path.is_file():
            raise MissingData(f"no file {path}; set data.path, or run: {self.source.install}")
        columns = [name for name in (self.source.column, self.source.less) if name is not None]
        table = read_csv(path, needed=columns)
        value, *less = (torch.from_numpy(complete(table, name)) for name in columns)
        return value - less[0] if less else value

    def references(self) -> dict[str, float]:
        """Test NLL (nats a step) of Vasicek's, Cox, Ingersoll and Ross's and Brennan and Schwartz's process, and of a
        random walk: x' ~ N(x + a + b x, s^2 max(x, 0.02)^p) with p 0, 1, 2; a = b = p = 0. By maximum likelihood of
        these Euler transitions on the training pairs, validation included.
        """
        known, rest = self._divided_values()
        scores = {name: transition_nll(known, rest, power) for name, power in POWERS.items()}
        scores["random_walk"] = transition_nll(known, rest, 0, drift=False)
        return {f"reference/{name}_nll": score for name, score in scores.items()}

    def _divided_values(self) -> tuple[Tensor, Tensor]:
        """The training part, and the test part with the value before it."""
        values = self.values()
        known = int(TRAINED * len(values))
        return values[:known], values[known - 1 :]


def transition_nll(known: Tensor, rest: Tensor, power: int, *, drift: bool = True) -> float:
    """Mean NLL of the steps of `rest` (M,) under x' ~ N(x + a + b x, s^2 max(x, FLOOR)^power), fitted to `known` (N,).

    The likelihood is greatest at the weighted least squares of x' - x on (1, x) and at the mean weighted square of
    what that leaves.
    """

    def terms(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns = torch.stack([torch.ones_like(x[:-1]), x[:-1]], dim=1) if drift else x.new_zeros(len(x) - 1, 1)
        return columns, x.diff(), x[:-1].clamp(min=FLOOR) ** power

    columns, steps, shape = terms(known)
    root = shape.sqrt()
    weights = torch.linalg.lstsq(columns / root[:, None], steps / root, driver="gelsd").solution
    scale = ((steps - columns @ weights).square() / shape).mean()
    columns, steps, shape = terms(rest)
    variance = scale * shape
    squares = (steps - columns @ weights).square() / variance
    return float(0.5 * (squares + variance.log() + math.log(2 * math.pi)).mean())


def _pairs(values: Tensor) -> Series:
    """Each value and the next, at times 0 and 1."""
    pairs = values.unfold(0, 2, 1)
    return Series(torch.arange(2).expand(len(pairs), -1), pairs.unsqueeze(-1))
