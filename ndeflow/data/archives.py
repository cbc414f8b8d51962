"""Sets of the UCR/UEA/TSER archives: `.ts` files, from a folder or from an installed aeon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack, final

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data import content
from ndeflow.data.base import DataModule, OtherOptions
from ndeflow.data.filling import linear_scores
from ndeflow.data.notices import MissingData, installed
from ndeflow.data.targets import is_number
from ndeflow.data.visibility import Hidden

TARGETS = ("classlabel", "targetlabel")
INSTALL = "pip install --no-deps aeon==1.6.0"


@final
class Archive(DataModule):
    """A set by its name, in the provider's split; 15 % of the training rows, by class, are taken for validation.

    name: as in NAME_TRAIN.ts. root: a folder that holds NAME_TRAIN.ts or */NAME_TRAIN.ts; None: the installed
    aeon's. Times are the observations' numbers 0, 1, ... before any are dropped. Values are standardised unless
    `standardise=False`. Raises MissingData with the install line if the set is not there.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        *,
        standardise: bool = True,
        time_scale: float | None = 1.0,
        **options: Unpack[OtherOptions],
    ) -> None:
        super().__init__(standardise=standardise, time_scale=time_scale, **options)
        self.set_name, self.root = name, None if root is None else Path(root)

    def series(self) -> Mapping[str, Series]:
        folder = installed("aeon", "datasets/data", INSTALL) if self.root is None else self.root
        found = sorted([*folder.glob(f"{self.set_name}_TRAIN.ts"), *folder.glob(f"*/{self.set_name}_TRAIN.ts")])
        if not found:
            raise MissingData(
                f"no {self.set_name}_TRAIN.ts in {folder} or its folders; set data.root, or run: {INSTALL}"
            )
        test = found[0].with_name(f"{self.set_name}_TEST.ts")
        if not test.is_file():
            raise MissingData(f"expected {test} beside {found[0].name}")
        return {"train": read_ts(found[0]), "test": read_ts(test)}

    def references(self) -> dict[str, float]:
        """Of hidden values, the scores of linear interpolation: see `linear_scores`."""
        return linear_scores(self.train, self.test, self.spec) if isinstance(self.seen, Hidden) else {}


def read_ts(path: str | Path) -> Series:
    """Read a `.ts` file: `#` comments, `@key value` headers, `@data`, then one case a line: channels separated by
    `:`, values by `,`, `?` and NaN missing; last the class label, or the number to regress, where the header says so.

    Lengths and channels are taken from the cases, not from the header. Raises ValueError by line.
    """
    path = Path(path)
    header: dict[str, str] = {}
    target: list[str | float] = []
    ys: list[Tensor] = []
    for number, line in enumerate(content.text(path).splitlines(), start=1):
        line, where = line.strip(), f"{path}: line {number}"
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            header[key.lower()] = value.strip().lower()
            if key.lower() in TARGETS and not value.strip():
                raise ValueError(f"{where}: expected @{key} true or @{key} false, got no value")
            continue
        if "data" not in header:
            raise ValueError(f"{where}: expected @data before the first case")
        channels = line.split(":")
        if has_target(header):
            target.append(one_target(channels.pop().strip(), where, regress=is_true(header, "targetlabel")))
        ys.append(one_case(channels, where))
        if ys[-1].shape[1] != ys[0].shape[1]:
            raise ValueError(f"{where}: expected {ys[0].shape[1]} channels, got {ys[-1].shape[1]}")
    if not ys:
        raise ValueError(f"{path}: expected at least one case after @data")
    return Series([torch.arange(len(y)) for y in ys], ys, target=target or None)


def is_true(header: Mapping[str, str], key: str) -> bool:
    return header.get(key, "false").split()[0] == "true"


def has_target(header: Mapping[str, str]) -> bool:
    return any(is_true(header, key) for key in TARGETS)


def one_target(text: str, where: str, *, regress: bool) -> str | float:
    """A case's class label, or the finite number to regress. Raises ValueError where it is no such number."""
    if regress and not is_number(text):
        raise ValueError(f"{where}: expected a finite number to regress after the last ':', got '{text}'")
    return float(text) if regress else text


def one_case(channels: Sequence[str], where: str) -> Tensor:
    """(T, C) float64, NaN where missing. Raises ValueError for time stamps, text, or channels of unlike lengths."""
    if not channels:
        raise ValueError(f"{where}: expected channels and a target, separated by ':'")
    try:
        columns = [np.array(channel.replace("?", "nan").split(","), dtype=np.float64) for channel in channels]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected plain numbers (time stamps are not read)") from None
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{where}: expected channels of one length, got {[len(column) for column in columns]}")
    return torch.from_numpy(np.stack(columns, axis=1))
