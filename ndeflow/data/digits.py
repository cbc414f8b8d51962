"""Handwritten digits as vectors that are seen once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.data.content import text
from ndeflow.data.notices import MissingData, installed

INSTALL = "pip install scikit-learn"
TESTED = 500  # of 1797


@final
class Digits(DataModule):
    """1797 handwritten digits of 8 x 8 pixels between 0 and 1, each a series of one vector, of ten classes.

    Alpaydin & Kaynak 1998, from scikit-learn. 500 of them, drawn with `split_seed`, are for testing, 15 % of the rest
    for validation. path: a file like its digits.csv.gz; None: the installed one. Raises MissingData with the install
    line if the file is not there, ValueError for a file of another kind.
    """

    channel_names = tuple(f"pixel{row}{column}" for row in range(8) for column in range(8))

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        standardise: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, split_seed=split_seed,
                         standardise=standardise)  # fmt: skip
        self.path = None if path is None else Path(path)

    def series(self) -> Mapping[str, Series]:
        values = torch.from_numpy(self.values())
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(self.split_seed))
        parts = {"train": order[TESTED:], "test": order[:TESTED]}
        return {split: _series(values[rows]) for split, rows in parts.items()}

    def values(self) -> np.ndarray:
        """(1797, 65): pixels from 0 to 16, and the digit."""
        path = self.path or installed("sklearn", "datasets/data/digits.csv.gz", INSTALL)
        if not path.is_file():
            raise MissingData(f"no file {path}; set data.path, or run: {INSTALL}")
        content = text(path)
        try:
            values = np.loadtxt(content.splitlines(), delimiter=",")
        except ValueError as error:
            raise ValueError(f"{path}: {error}; expected numbers separated by commas, compressed") from None
        if values.ndim != 2 or values.shape[1] != 65 or len(values) <= TESTED:
            raise ValueError(f"{path}: expected over {TESTED} rows of 64 pixels and a digit, got {values.shape}")
        return values


def _series(values: torch.Tensor) -> Series:
    return Series(torch.zeros(len(values), 1), values[:, None, :64] / 16, target=values[:, 64].long())
