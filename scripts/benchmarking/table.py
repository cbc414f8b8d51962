"""Blocks as aligned columns of text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarking.block import Block, Row
from benchmarking.cases import PLAIN
from benchmarking.machine import percent
from benchmarking.measure import Times

HEADS = (
    *("system", "nfe", "rows", "min ms", "median ms", "iqr ms", "cpu ms", "first s", "first cpu s", "kept MB"),
    *("error", "gradient", "penalty %", "/ bare field"),
)  # and a column for each peer


def table(block: Block) -> str:
    """The case, its rows, and who is absent."""
    heads = [*HEADS, *(f"{name} /" for name in block.case.peers)]
    lines = [heads, *(cells(row, block) for row in block.rows)]
    if block.bare is not None:
        nfe = block.rows[0].cost.nfe
        lines.append(padded(["bare field", str(nfe), "", *clock(block.bare.scaled(nfe))], len(heads)))
    title = f"{block.case}; used by others {percent(block.others)}"
    absent = [f"absent: {name} ({reason})" for name, reason in block.absent.items()]
    return "\n".join([title, *aligned(lines), *absent])


def cells(row: Row, block: Block) -> list[str]:
    cost, fastest = row.cost, row.times.minimum
    return [
        row.system,
        f"{cost.nfe}+{cost.again}" if cost.again else str(cost.nfe),
        f"{cost.said or '-'} / {cost.counted or '-'}" if block.case.rowwise else "",
        *clock(row.times),
        f"{row.first:.2f}",
        f"{row.first_cpu:.2f}",
        "" if row.kept is None else f"{row.kept / 1e6:.3g}",
        *("" if error is None else f"{error:.1e}" for error in (row.error, row.gradient_error)),
        added(row, block),
        "" if block.bare is None else f"{fastest / (block.bare.minimum * cost.nfe):.2f}",
        *(ratios(row.times, block.row(name)) for name in block.case.peers),
    ]


def added(row: Row, block: Block) -> str:
    """What a penalty adds within a round, and to the fastest call, in percent."""
    plain = block.row(PLAIN.get(row.system, ""))
    if plain is None:
        return ""
    within, fastest = row.times.over(plain.times), row.times.minimum / plain.times.minimum
    return f"{100 * (within - 1):+.1f} ({100 * (fastest - 1):+.1f})"


def ratios(times: Times, other: Row | None) -> str:
    """How many times as long the other takes by the clock, and by processor time."""
    if other is None:
        return ""
    return f"{number(other.times.minimum / times.minimum)} ({number(other.times.cpu / times.cpu)})"


def clock(times: Times) -> list[str]:
    """Milliseconds."""
    return [number(1e3 * x) for x in (times.minimum, times.median, times.spread, times.cpu)]


def number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def padded(line: list[str], length: int) -> list[str]:
    return line + [""] * (length - len(line))


def aligned(lines: Sequence[list[str]]) -> list[str]:
    """Names to the left, numbers to the right, columns without numbers left out."""
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join([name.ljust(widths[0]), *(x.rjust(w) for x, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for name, *rest in rows
    ]
