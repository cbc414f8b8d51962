"""The metrics of a run as one CSV file that survives interruption and resumption unchanged."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ndeflow.training.files import write_atomically

STEP = "step"
TIME = "time/"  # columns of this prefix differ from run to run; all others are reproduced exactly


@final
class TableLogger(Logger):
    """A Lightning logger whose rows, one a step, live in memory until `save` replaces the file as a whole.

    An existing file is continued. Columns stand in the order of their first appearance, after `step`.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: list[dict[str, str]] = _read(self.path) if self.path.exists() else []

    @property
    def rows(self) -> list[dict[str, float]]:
        """The table so far: one dict a row, without the cells that are empty."""
        return [_numbers(row) for row in self._rows]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, or more cells to the last row if that is of the same step."""
        cells = {name: repr(value) for name, value in metrics.items()}
        if self._rows and step is not None and self._rows[-1][STEP] == str(step):
            self._rows[-1].update(cells)
        else:
            self._rows.append({STEP: "" if step is None else str(step), **cells})

    def rewind(self, step: int) -> None:
        """Forget rows of later steps than `step`: a resumed run will write them again."""
        self._rows = [row for row in self._rows if not row[STEP] or int(row[STEP]) <= step]

    @rank_zero_only
    def save(self) -> None:
        if self._rows:
            write_atomically(self.path, _text(self._rows).encode())

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration has a file of its own."""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    def name(self) -> str:
        return "table"

    @property
    def version(self) -> str:
        return ""


def read_table(path: Path | str) -> list[dict[str, float]]:
    """The rows of a metrics.csv: one dict a row, without the cells that are empty."""
    return [_numbers(row) for row in _read(Path(path))]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return [{STEP: row.pop(STEP, ""), **row} for row in rows]


def _text(rows: list[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in row.items() if cell}
