"""Paths of a price: what happens in so many days, from wherever it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.data.cells import complete
from ndeflow.data.notices import MissingData, installed
from ndeflow.data.table import read_csv

INSTALL = "pip install --no-deps arch==8.0.0"
PRICE = "Adj Close"
PERIOD, TESTED = 250, 3  # days of a block, about a year; of three blocks the last is for the test


@final
class Returns(DataModule):
    """Windows of the S&P 500's daily closing price, 1999-2018: the sum of log-returns since the window's first day.

    A model's unit of time is a window, that of the path the standard deviation of a training return times sqrt(days):
    a random walk ends at variance 1. The days are cut into blocks of 250, of
    which every third is for the test: its calm and wild years are not those of one end of the record. Windows are of
    `days` returns, begin at every day and stay within a block; 15 % of the training windows, drawn at random, are for
    validation. The first value, 0, is seen. path: arch's sp500.csv.gz; None: the installed package's. Raises ValueError
    for windows that fit into no block and for a file that is damaged or too short, MissingData with the install line
    if the file is not there.
    """

    channel_names = ("log_price",)

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        days: int = 32,
        batch_size: int = 128,
        eval_batch_size: int | None = 4096,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        if not 2 <= days <= PERIOD:
            raise ValueError(f"expected data.days from 2 to {PERIOD}, got {days}")
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, split_seed=split_seed,
                         time_scale=float(days))  # fmt: skip
        self.days = days
        self.path = None if path is None else Path(path)

    def series(self) -> Mapping[str, Series]:
        return {name: _windows(self.blocks(name), self.days) for name in ("train", "test")}

    def blocks(self, split: str) -> list[Tensor]:
        """The standardised returns, (at most 250,) float64, of each block of "train" or "test"; at least a window's."""
        found = self.returns().split(PERIOD)
        parts = {
            "train": [b for k, b in enumerate(found) if (k + 1) % TESTED],
            "test": list(found[TESTED - 1 :: TESTED]),
        }
        known = torch.cat(parts["train"])
        return [(b - known.mean()) / known.std() for b in parts[split] if len(b) >= self.days]

    def returns(self) -> Tensor:
        """(N,) float64: logarithms of each day's closing price over the day before's."""
        path = self.path or installed("arch", "data/sp500/sp500.csv.gz", INSTALL)
        if not path.is_file():
            raise MissingData(f"no file {path}; set data.path, or run: {INSTALL}")
        table = read_csv(path, needed=(PRICE,))
        prices, least = complete(table, PRICE), (TESTED - 1) * PERIOD + self.days + 1
        wrong = np.flatnonzero(prices <= 0)
        if wrong.size:
            raise table.error(wrong[0], f"expected a positive price, got {prices[wrong[0]]:g}", PRICE)
        if len(prices) < least:
            raise ValueError(f"{path}: expected at least {least} prices, got {len(prices)}; give a longer record")
        return torch.from_numpy(prices).log().diff()


def _windows(blocks: list[Tensor], days: int) -> Series:
    """The sums of all windows of `days` returns in a row, and 0 before them, over sqrt(days): (N, days + 1)."""
    windows = torch.cat([block.unfold(0, days, 1) for block in blocks])
    paths = torch.cat([windows.new_zeros(len(windows), 1), windows.cumsum(dim=1)], dim=1) / days**0.5
    return Series(torch.arange(days + 1).expand(len(paths), -1), paths.unsqueeze(-1))
