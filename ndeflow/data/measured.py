"""Measured records small enough to be printed here: one series, its beginning to fit, its end to forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.data.visibility import First


class Record(DataModule):
    """One series of measurements at times 0, 1, 2, ...: fit the first, forecast the next.

    fit: observations to fit; the training row, of which a model reads the first and is scored on the rest.
    forecast: how many come next; the test row is both, its first `fit` readable, so that the forecast is scored.
    The validation row: as the test row, but without what lies beyond `development`; where `fit` leaves nothing
    before `development`, the training row again (settings are then chosen with a smaller `fit`). Values are not
    standardised.
    """

    values: ClassVar[Mapping[str, tuple[float, ...]]]
    development: ClassVar[int]
    """Observations that settings may be chosen on; the rest is for the last test."""
    known: ClassVar[Mapping[tuple[int, int], float]]
    """Test score of the known equation, fitted by least squares in the units of the score, by (fit, forecast)."""
    known_name: ClassVar[str]
    logarithmic: ClassVar[bool]
    """Whether scores are of the logarithms."""

    def __init__(self, *, fit: int, forecast: int, seed: int = 0, time_scale: float = 1.0) -> None:
        super().__init__(batch_size=1, seed=seed, time_scale=time_scale)
        length = len(next(iter(self.values.values())))
        if fit < 2 or forecast < 1 or fit + forecast > length:
            raise ValueError(
                f"expected data.fit >= 2, data.forecast >= 1 and a sum of at most {length}, got {fit} and {forecast}"
            )
        self.fit, self.forecast = fit, forecast
        self.channel_names = tuple(self.values)

    @property
    def table(self) -> Tensor:
        """(T, C) float64: the whole record."""
        return torch.tensor(list(self.values.values()), dtype=torch.float64).T

    def series(self) -> Mapping[str, Series]:
        end = self.fit + self.forecast
        return {"train": self._until(self.fit), "val": self._until(self._validated), "test": self._until(end)}

    def visible(self, split: str, ts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        fitting = split == "train" or (split == "val" and self._validated == self.fit)
        return First(1 if fitting else self.fit).seen(mask, index)

    def references(self) -> dict[str, float]:
        """RMSE of the forecast, of logarithms or as it is, by the last fitted value and by the known equation."""
        table = self.table.log() if self.logarithmic else self.table
        error = table[self.fit : self.fit + self.forecast] - table[self.fit - 1]
        score = "log_rmse" if self.logarithmic else "rmse"
        scores = {f"reference/persistence_{score}": float(error.square().mean().sqrt())}
        known = self.known.get((self.fit, self.forecast))
        return scores if known is None else scores | {f"reference/{self.known_name}_{score}": known}

    @property
    def _validated(self) -> int:
        """Length of the validation row."""
        return max(self.fit, min(self.fit + self.forecast, self.development))

    def _until(self, end: int) -> Series:
        return Series(torch.arange(end)[None], self.table[None, :end])


@final
class LynxHare(Record):
    """Pelts of hare and lynx traded by the Hudson's Bay Company, thousands, 1900-1920; times in years since 1900.

    Elton and Nicholson, Journal of Animal Ecology 11 (1942) 215; table in Howard, Modeling Basics (2009). To choose
    settings: fit=11, then forecast=5 are the years before the test years.
    """

    values = {
        "hare": (30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1, 40.3, 57.0, 76.6, 52.3, 19.5, 11.2,
                 7.6, 14.6, 16.2, 24.7),
        "lynx": (4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4, 8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8,
                 9.7, 10.1, 8.6),
    }  # fmt: skip
    time_origin = 1900.0
    development = 16
    known = {(16, 5): 0.364, (11, 5): 0.338, (11, 10): 0.431}
    known_name = "lotka_volterra"
    logarithmic = True

    def __init__(self, *, fit: int = 16, forecast: int = 5, seed: int = 0, time_scale: float = 1.0) -> None:
        super().__init__(fit=fit, forecast=forecast, seed=seed, time_scale=time_scale)


@final
class Influenza(Record):
    """Boys in bed with influenza, of 763 in a boarding school, England 1978; times in days since the first.

    British Medical Journal 1 (1978) 587. To choose settings: fit=5, then forecast=2 lie before the test days.
    """

    values = {"in_bed": (3.0, 8.0, 26.0, 76.0, 225.0, 298.0, 258.0, 233.0, 189.0, 128.0, 68.0, 29.0, 14.0, 4.0)}
    development = 7
    known = {(7, 7): 40.8}
    known_name = "sir"
    logarithmic = False

    def __init__(self, *, fit: int = 7, forecast: int = 7, seed: int = 0, time_scale: float = 1.0) -> None:
        super().__init__(fit=fit, forecast=forecast, seed=seed, time_scale=time_scale)
