"""A CSV or Parquet file as named columns, each row with its place in the file."""

from __future__ import annotations

import csv
import datetime
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ndeflow.data import content
from ndeflow.data.notices import MissingData

PARQUET_SUFFIXES = (".parquet", ".pq")
TAB_NAMES = ("tab", "\\t")


@dataclass(frozen=True)
class Table:
    """Columns of equal length: text, stripped; or float64 where a Parquet file says so.

    unit: what a row's place is counted in, "line" (of a text file, the header is line 1) or "row".
    """

    path: Path
    unit: str
    places: Sequence[int]
    columns: dict[str, list[str] | np.ndarray]

    def error(self, row: int, message: str, column: str | None = None) -> ValueError:
        """An error at a row (from 0) of the table, naming its place in the file."""
        where = f"{self.unit} {self.places[row]}" + (f", column '{column}'" if column else "")
        return ValueError(f"{self.path}: {where}: {message}")

    def text(self, column: str) -> list[str]:
        """A column as text, empty where missing."""
        values = self.columns[column]
        return values if isinstance(values, list) else [as_text(value) for value in values.tolist()]


def read_table(path: str | Path, *, sep: str = ",", decimal: str = ".") -> Table:
    """Read the file as it is. Raises ValueError if it is no table: see `read_csv`, `read_parquet`."""
    path = Path(path)
    sep = "\t" if sep in TAB_NAMES else sep
    if not path.is_file():
        raise MissingData(f"no file {path}; set data.path")
    if len(sep) != 1 or decimal not in (".", ",") or sep == decimal:
        raise ValueError(f"expected data.sep of one character and data.decimal '.' or ',', unlike each other, "
                         f"got {sep!r} and {decimal!r}")  # fmt: skip
    return read_parquet(path) if path.suffix in PARQUET_SUFFIXES else read_csv(path, sep)


def read_csv(path: Path, sep: str = ",", needed: Sequence[str] = ()) -> Table:
    """A text file as `content.text` reads it; quotes as in RFC 4180; empty lines are passed over.

    Raises ValueError for a file that is no such text, lacks a needed column, has no row, or a row of another width
    than its header.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(content.text(path), newline=""), delimiter=sep)
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}; save it as CSV in UTF-8") from None
    if len(rows) < 2:
        raise ValueError(f"{path}: expected a header and at least one row, got {len(rows)} line(s)")
    header, body = [name.strip() for name in rows[0]], rows[1:]
    lacking = [name for name in needed if name not in header]
    if lacking:
        raise ValueError(f"{path}: expected a column {lacking[0]!r}, got {header}")
    check_header(path, header)
    for row, line in zip(body, lines[1:], strict=True):
        if len(row) != len(header):
            raise ValueError(f"{path}: line {line}: expected {len(header)} fields, got {len(row)}")
    cells = [[cell.strip() for cell in column] for column in zip(*body, strict=True)]
    return Table(path, "line", lines[1:], dict(zip(header, cells, strict=True)))


def read_parquet(path: Path) -> Table:
    """Types as in the file's schema; nulls are missing. Rows are counted from 1.

    Raises ModuleNotFoundError without pyarrow, ValueError for a file that is no Parquet or has no row.
    """
    if find_spec("pyarrow") is None:
        raise ModuleNotFoundError(f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    names = table.column_names
    check_header(path, names)
    if not table.num_rows:
        raise ValueError(f"{path}: expected at least one row, got 0")
    return Table(path, "row", range(1, table.num_rows + 1), dict(zip(names, map(parquet_column, table), strict=True)))


def parquet_column(column: Any) -> list[str] | np.ndarray:
    """Floats as they are, all else as the text that a CSV file would have."""
    import pyarrow

    if pyarrow.types.is_floating(column.type):
        return column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    return [as_text(value) for value in column.to_pylist()]


def as_text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) == 1:
        raise ValueError(f"{path}: one column '{header[0]}': wrong separator, set data.sep")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: column(s) {twice} appear twice")
