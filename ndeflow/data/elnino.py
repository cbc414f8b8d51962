"""Sea surface temperature off Peru, monthly: forecast it some months ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule
from ndeflow.data.cells import numbers
from ndeflow.data.notices import MissingData, installed
from ndeflow.data.table import read_csv
from ndeflow.data.visibility import Visibility
from ndeflow.metrics import gaussian_nll

MONTHS = 12
INSTALL = "pip install statsmodels"


@final
class ElNino(DataModule):
    """Windows of the monthly temperature (deg C, 1950-2010): `context` months are seen, one `lead` months on is scored.

    path: statsmodels' elnino.csv, a row a year with twelve months; None: the installed package's. Times are months
    from a window's first. inputs: sine and cosine of the scored month's place in the year. The first `train_years`
    are for training, the last `validation_years` of them for validation, the rest for the test; in validation and
    test the last seen month and the scored one lie in the split's own years. With `seen` any of a window's months may
    be scored, and so the whole window, up to the month `lead` months on, lies in them. Raises MissingData with the
    install line if the file is not there.
    """

    channel_names = ("temperature",)
    input_names = ("season_sin", "season_cos")

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        context: int = 24,
        lead: int = 3,
        train_years: int = 45,
        validation_years: int = 9,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        seen: Visibility | None = None,
        standardise: bool = True,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, seen=seen,
                         standardise=standardise, time_scale=time_scale)  # fmt: skip
        if min(context, lead) < 1 or not 0 < validation_years < train_years:
            raise ValueError(
                "expected data.context and data.lead of at least 1 and 0 < data.validation_years < data.train_years, "
                f"got {context}, {lead}, {validation_years} and {train_years}"
            )
        self.path = None if path is None else Path(path)
        self.context, self.lead = context, lead
        self.train_years, self.validation_years = train_years, validation_years

    def series(self) -> Mapping[str, Series]:
        months = self.months()
        known, fitted = self.train_years * MONTHS, (self.train_years - self.validation_years) * MONTHS
        if len(months) < known + self.lead + 1:
            raise ValueError(
                f"expected more than data.train_years={self.train_years} years, got {len(months) / MONTHS:g}"
            )
        if fitted < self.context + self.lead:
            raise ValueError(f"expected data.context + data.lead of at most the {fitted} training months")
        inside = 0 if self.seen is None else self.context - 1
        if inside and known - fitted <= inside + self.lead:
            raise ValueError(f"expected data.context + data.lead of at most the {known - fitted} validation months")
        return {
            "train": self._windows(months, self.context - 1, fitted),
            "val": self._windows(months, fitted + inside, known),
            "test": self._windows(months, known + inside, len(months)),
        }

    def visible(self, split: str, ts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        """All but the last time, where `seen` says nothing else."""
        if self.seen is not None:
            return super().visible(split, ts, mask, index)
        seen = mask.clone()
        seen[:, -1] = False
        return seen

    def months(self) -> Tensor:
        """(M,) float64: temperatures from the first January on, NaN where missing."""
        path = self.path or installed("statsmodels", "datasets/elnino/elnino.csv", INSTALL)
        if not path.is_file():
            raise MissingData(f"no file {path}; set data.path, or run: {INSTALL}")
        table = read_csv(path)
        year, *months = table.columns
        if len(months) != MONTHS:
            raise ValueError(f"{path}: expected a year and {MONTHS} months a row, got the columns {[year, *months]}")
        return torch.from_numpy(np.stack([numbers(table, month) for month in months], axis=1).reshape(-1))

    def references(self) -> dict[str, float]:
        """Test RMSE (deg C) of the months' training means (climatology), of the last seen month's departure from
        them persisting, and of that departure damped by its training autocorrelation at the lead. With `seen`: RMSE
        and log-likelihood (nats a value) of departures as a stationary Gaussian process, given a window's seen months.
        """
        months, known = self.months(), self.train_years * MONTHS
        climate = months[:known].unflatten(0, (-1, MONTHS)).nanmean(dim=0)
        anomaly = months - climate.repeat(len(months) // MONTHS)
        if self.seen is not None:
            return self._linear(anomaly, known)
        past = anomaly[: known - self.lead].nan_to_num()
        damping = (past * anomaly[self.lead : known].nan_to_num()).sum() / past.square().sum()
        last, scored = anomaly[known : -self.lead], anomaly[known + self.lead :]
        return {
            "reference/climatology_rmse": rmse(scored),
            "reference/persisted_anomaly_rmse": rmse(scored - last),
            "reference/damped_anomaly_rmse": rmse(scored - damping * last),
        }

    def _linear(self, anomaly: Tensor, known: int) -> dict[str, float]:
        """Scores of a Gaussian process with the training variance v and autocorrelation phi of neighbouring months,
        covariance v phi^|i - j|.
        """
        past, batch = anomaly[:known], self.test
        variance = past.square().nanmean()
        phi, places = (past[1:] * past[:-1]).nanmean() / variance, self._places()
        covariance = variance * phi ** (places[:, None] - places).abs()
        errors, spreads = [], []
        for row, (seen, scored) in enumerate(zip(batch.seen[..., 0], batch.scored[..., 0], strict=True)):
            x, between = anomaly[known + row + places], covariance[seen][:, scored]
            gain = torch.linalg.solve(covariance[seen][:, seen], between)
            errors.append(x[scored] - gain.T @ x[seen])
            spreads.append((variance - (gain * between).sum(dim=0)).sqrt())
        error, spread = torch.cat(errors), torch.cat(spreads)
        nll = gaussian_nll(torch.zeros_like(error), spread, error)
        return {"reference/linear_rmse": rmse(error), "reference/linear_log_likelihood": -float(nll.mean())}

    def _windows(self, months: Tensor, first: int, end: int) -> Series:
        """All windows whose last month of context is `first` or later and whose scored month comes before `end`."""
        last = torch.arange(first, end - self.lead)
        places = self._places()
        phase = 2 * math.pi * ((last + self.lead) % MONTHS).double() / MONTHS
        return Series(
            ts=places.expand(len(last), -1),
            ys=months[last[:, None] + 1 - self.context + places].unsqueeze(-1),
            inputs=torch.stack([phase.sin(), phase.cos()], dim=1),
        )

    def _places(self) -> Tensor:
        """(context + 1,): months of a window, from its first."""
        return torch.cat([torch.arange(self.context), torch.tensor([self.context - 1 + self.lead])])


def rmse(error: Tensor) -> float:
    return float(error.square().nanmean().sqrt())
