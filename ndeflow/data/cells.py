"""The columns of a table read as numbers, times, and facts of an id; what cannot be read is refused by line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from ndeflow.data.table import Table

MISSING = frozenset(["", "NA", "NaN", "nan", "NAN", "Nan", "null", "None"])
EPOCH = datetime(1970, 1, 1)


def numbers(table: Table, column: str, decimal: str = ".") -> np.ndarray:
    """A column as float64 (R,), NaN where missing. Raises ValueError at the first cell that is no finite number."""
    values = table.columns[column]
    if isinstance(values, list):
        values = parsed(table, column, values, decimal)
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise table.error(infinite[0], "infinite value", column)
    return values


def complete(table: Table, column: str) -> np.ndarray:
    """As `numbers`, but a missing cell is refused too."""
    values = numbers(table, column)
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        raise table.error(missing[0], "expected a number, got none; fetch the file anew", column)
    return values


def parsed(table: Table, column: str, cells: Sequence[str], decimal: str) -> np.ndarray:
    try:
        return np.array([np.nan if cell in MISSING else to_float(cell, decimal) for cell in cells])
    except ValueError:
        row = next(i for i, cell in enumerate(cells) if cell not in MISSING and not readable(cell, decimal))
        raise table.error(row, f"'{cells[row]}' is not a number{cure(cells[row], decimal)}", column) from None


def to_float(cell: str, decimal: str) -> float:
    """Python's float, with the file's decimal mark and without digit separators; never NaN."""
    if "_" in cell or (decimal == "," and "." in cell):
        raise ValueError(cell)
    value = float(cell.replace(",", ".") if decimal == "," else cell)
    if math.isnan(value):
        raise ValueError(cell)
    return value


def readable(cell: str, decimal: str) -> bool:
    try:
        to_float(cell, decimal)
    except ValueError:
        return False
    return True


def cure(cell: str, decimal: str) -> str:
    other = "," if decimal == "." else "."
    if not re.fullmatch(rf"[+-]?\d*{re.escape(other)}\d+", cell):
        return ""
    return f'; decimal {"comma" if other == "," else "point"}? set data.decimal="{other}"'


class Times(NamedTuple):
    """values: (R,) float64, numbers as they are or seconds since 1970. kind: "number", "naive" or "zoned"."""

    values: np.ndarray
    kind: str


def times(table: Table, column: str, decimal: str = ".") -> Times:
    """A time column: finite numbers, or ISO 8601. Raises ValueError at the first unreadable or mixed cell.

    Also where all cells are dates without hyphens: as numbers the last day of a month were 70 before the next day.
    """
    cells = table.text(column)
    first = ""
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        time = one_time(cell, decimal)
        if time is None:
            raise table.error(row, f"time '{cell}' is neither a number nor ISO 8601")
        values[row], kind = time
        first = first or kind
        if kind != first:
            raise table.error(row, f"times mix {sorted([first, kind])}")
    if first == "number" and all(map(is_compact_date, cells)):
        year, month, day = cells[0][:4], cells[0][4:6], cells[0][6:]
        raise table.error(0, f"expected numbers or ISO 8601, got dates such as {cells[0]}; write {year}-{month}-{day}")
    return Times(values, first)


def is_compact_date(cell: str) -> bool:
    """Whether the text is YYYYMMDD of a day in the calendar."""
    return len(cell) == 8 and cell.isdecimal() and one_date(cell) is not None


def one_time(cell: str, decimal: str) -> tuple[float, str] | None:
    try:
        value = to_float(cell, decimal)
        return (value, "number") if np.isfinite(value) else None
    except ValueError:
        pass
    date = one_date(cell)
    if date is None:
        return None
    if date.tzinfo is None:
        return (date - EPOCH).total_seconds(), "naive"
    return (date.astimezone(UTC).replace(tzinfo=None) - EPOCH).total_seconds(), "zoned"


def one_date(cell: str) -> datetime | None:
    try:
        return datetime.fromisoformat(cell)
    except ValueError:
        return None


class Ids(NamedTuple):
    """names: the N distinct ids in the order of their first rows. codes: (R,) the place of each row's id there."""

    names: list[str]
    codes: np.ndarray


def ids(table: Table, column: str) -> Ids:
    """An id column. Raises ValueError at the first empty cell."""
    cells = table.text(column)
    if "" in cells:
        raise table.error(cells.index(""), "empty id")
    place: dict[str, int] = {}
    codes = np.array([place.setdefault(cell, len(place)) for cell in cells])
    return Ids(list(place), codes)


def chronological(table: Table, groups: Ids, time: np.ndarray, time_column: str) -> np.ndarray:
    """The rows' order by id and time, (R,). Raises ValueError at the first row whose id has its time already."""
    order = np.lexsort((np.arange(len(time)), time, groups.codes))
    code, sorted_time = groups.codes[order], time[order]
    again = np.flatnonzero((code[1:] == code[:-1]) & (sorted_time[1:] == sorted_time[:-1]))
    if again.size:
        row = int(order[again + 1].min())
        name, at = groups.names[groups.codes[row]], table.text(time_column)[row]
        raise table.error(row, f"id '{name}' has two rows at time {at}")
    return order


def of_id(table: Table, column: str, groups: Ids, what: str) -> list[str | None]:
    """A column's one value for each id, None where no row gives it; cells may be empty if another row gives it.

    Raises ValueError at the first row with another value than the id had before.
    """
    values: list[str | None] = [None] * len(groups.names)
    for row, (code, cell) in enumerate(zip(groups.codes.tolist(), table.text(column), strict=True)):
        if cell in MISSING or values[code] == cell:
            continue
        if values[code] is not None:
            raise table.error(
                row,
                f"{what} of id '{groups.names[code]}' changes from '{values[code]}' to '{cell}'; "
                "expected one value per id",
            )
        values[code] = cell
    return values
