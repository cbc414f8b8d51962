"""The table of claims as Markdown and JSON, and its place in a README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ndeflow.claims import Verdict
from ndeflow.runs import finite

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
REPRODUCED, NOT_REPRODUCED = "reproduced", "**NOT reproduced**"
_HEAD = ("Recipe", "Paper", "Claim", "Bound", "Measured", "Verdict", "Minutes")


@dataclass(frozen=True)
class Result:
    """A recipe's part of the table.

    seeds: judged. minutes: of one training of the recipe itself. environment: versions, threads and the like.
    skipped: why it was not run, such as the line that installs its data. failed: what stopped its runs.
    values: test results, one mapping a seed, by run name.
    """

    recipe: str
    paper: str
    claim: str
    seeds: tuple[int, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    minutes: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    failed: str = ""
    values: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)

    @property
    def reproduced(self) -> bool | None:
        """Whether all bounds are met; None where it was skipped or claims nothing."""
        if self.skipped or not (self.verdicts or self.failed):
            return None
        return not self.failed and all(verdict.met for verdict in self.verdicts)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """From what `to_json` wrote; numbers that were not finite are None."""
        verdicts = tuple(Verdict(**verdict) for verdict in values["verdicts"])
        return cls(**{**values, "seeds": tuple(values["seeds"]), "verdicts": verdicts})


def to_json(results: Sequence[Result]) -> str:
    """Everything known, as strict JSON: numbers that are not finite are null."""
    return json.dumps(finite([asdict(result) for result in results]), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> list[Result]:
    return [Result.from_dict(values) for values in json.loads(text)]


def to_markdown(results: Sequence[Result]) -> str:
    """One line a bound; below it how it was measured."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(cells) for result in results for cells in _cells(result)]
    return "\n".join([*lines, "", *_notes(results), ""])


def insert(text: str, table: str) -> str:
    """`text` with the table between its two marker lines. Raises ValueError where these are not there, once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one line {BEGIN} and after it one line {END}; add them where the table shall stand")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{rest.split(END)[1]}"


def merge(earlier: Sequence[Result], now: Sequence[Result]) -> list[Result]:
    """The results of this time, and those of other recipes from before, by name."""
    return sorted({result.recipe: result for result in (*earlier, *now)}.values(), key=lambda result: result.recipe)


def read(path: Path) -> list[Result]:
    """The results in a table.json; none where there is no such file."""
    return from_json(path.read_text()) if path.exists() else []


def _cells(result: Result) -> list[tuple[str, ...]]:
    minutes = "" if result.minutes is None else f"{result.minutes:.1f}"
    if result.skipped or result.failed or not result.verdicts:
        bounds = "; ".join(f"{v.metric} {v.bound}" for v in result.verdicts)
        outcome = f"skipped: {result.skipped}" if result.skipped else "nothing claimed"
        outcome = f"{NOT_REPRODUCED}: {result.failed}" if result.failed else outcome
        return [(result.recipe, result.paper, result.claim, _code(bounds), "", outcome, minutes)]
    head = [(result.recipe, result.paper, result.claim)] + [("", "", "")] * (len(result.verdicts) - 1)
    tail = [minutes] + [""] * (len(result.verdicts) - 1)
    return [
        (*start, _bound(verdict), _measured(verdict), _outcome(verdict), end)
        for start, verdict, end in zip(head, result.verdicts, tail, strict=True)
    ]


def _bound(verdict: Verdict) -> str:
    text = _code(f"{verdict.metric} {verdict.bound}")
    return f"{text} = {verdict.threshold:.4g}" if verdict.relative and verdict.threshold is not None else text


def _measured(verdict: Verdict) -> str:
    """Mean and spread; for a bound on a difference also the margin with its paired spread."""
    if verdict.measured is None or verdict.threshold is None:
        return ""
    if verdict.spread is None or verdict.paired is None:
        return f"{verdict.measured:.4g}"
    margin = f" (margin {verdict.measured - verdict.threshold:+.2g} ± {verdict.paired:.2g})" if verdict.relative else ""
    return f"{verdict.measured:.4g} ± {verdict.spread:.2g}{margin}"


def _outcome(verdict: Verdict) -> str:
    outcome = REPRODUCED if verdict.met else NOT_REPRODUCED
    return f"{outcome}: {verdict.note}" if verdict.note else outcome


def _notes(results: Sequence[Result]) -> list[str]:
    """How it was measured: a line for each set of seeds and environment among the recipes that ran."""
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.seeds and not result.skipped:
            seeds = ", ".join(str(seed) for seed in result.seeds)
            where = ", ".join(f"{name} {value}" for name, value in result.environment.items())
            groups.setdefault(f"seed{'s' * (len(result.seeds) > 1)} {seeds}; {where}", []).append(result.recipe)
    head = "Mean ± standard deviation over seeds; minutes of one training of the recipe itself"
    if len(groups) == 1:
        return [f"{head}; {next(iter(groups))}."]
    return [f"{head}.", *(f"\n{', '.join(recipes)}: {group}." for group, recipes in groups.items())] if groups else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
