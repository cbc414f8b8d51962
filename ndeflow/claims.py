"""What a recipe claims, the runs that it takes to judge it, and the verdicts.

A recipe's blocks, all optional:

    about:  {paper: ..., claim: ..., minutes: ...}
    versus: {plain: [regularizer=none]}             variants: overrides on the same recipe
    grid:   {data.drop: [0, 0.7]}                   settings that are crossed with the recipe and its variants
    needs:  {teacher: other_recipe}                 runs that come first; the override needs.teacher=RUN_DIR names them
    expect: {test/accuracy@0.7: ">= plain:test/accuracy@0.7 - 0.01"}     a bound, or a list of bounds, by metric

A metric on `@*` is claimed in every cell of the grid, in turn, and `@*` in its bound is the same cell.
All runs of one seed share split, masks and initialisation: differences between them are paired.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from statistics import fmean
from typing import Any

from ndeflow.expressions import Bound, Metric, Samples, TooFewSeeds, cell_name, deviation, parse_bound, parse_metric

Config = Mapping[str, Any]
Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""Test results, one mapping a seed, of each run by `run_name`; the same seeds in the same order for every run."""


@dataclass(frozen=True)
class Job:
    """One training that a table of claims takes. overrides: of the cell, then of the variant.

    needs: pairs (key, recipe): that recipe is trained first, with this job's seed, once for all jobs that name it.
    """

    recipe: str
    variant: str
    cell: str
    seed: int
    overrides: tuple[str, ...]
    needs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """One bound and what was measured, on the means over seeds.

    met: None where it could not be judged; `note` says why. spread: standard deviation of the metric over seeds,
    paired: that of (measured - threshold), seed by seed; None with one seed. Not judged: all numbers are None.
    """

    metric: str
    bound: str
    met: bool | None = None
    measured: float | None = None
    threshold: float | None = None
    spread: float | None = None
    paired: float | None = None
    seeds: int = 0
    note: str = ""

    @property
    def relative(self) -> bool:
        """Whether the bound depends on what was measured."""
        return any(True for _ in parse_bound(self.bound).expression.metrics())

    def __str__(self) -> str:
        if self.met is None or self.measured is None:
            return f"{self.metric} {self.bound}: {self.note}"
        limit = f" (= {self.threshold:.4g})" if self.relative else ""
        return f"{self.metric} {self.measured:.4g} {self.bound}{limit}: {'met' if self.met else 'NOT met'}"


def run_name(variant: str = "", cell: str = "") -> str:
    """The name of a run in `Runs`: VARIANT@CELL, without what is empty; "" for the recipe itself."""
    return f"{variant}@{cell}" if cell else variant


def cells(config: Config) -> dict[str, tuple[str, ...]]:
    """Overrides by cell name: every combination of the grid's values; one empty cell where there is no grid."""
    grid = config.get("grid") or {}
    if not all(_is_list(values) and len(values) for values in grid.values()):
        raise ValueError(f"expected lists of values in grid, such as data.drop: [0, 0.5], got {dict(grid)}")
    combinations = list(product(*grid.values()))
    return {cell_name(c): tuple(f"{k}={literal(v)}" for k, v in zip(grid, c, strict=True)) for c in combinations}


def variants(config: Config) -> dict[str, tuple[str, ...]]:
    """Overrides by variant; first "", the recipe itself."""
    versus = config.get("versus") or {}
    for name, overrides in versus.items():
        if not _is_list(overrides) or not all(
            isinstance(o, str) and ("=" in o or o.startswith("~")) for o in overrides
        ):
            raise ValueError(
                f"expected a list of overrides in versus.{name}, such as [regularizer=none], got {overrides}"
            )
    return {"": (), **{name: tuple(overrides) for name, overrides in versus.items()}}


def expectations(expect: Config | None, grid: Iterable[str] = ()) -> list[tuple[Metric, Bound]]:
    """Metrics and bounds of an `expect` block, in order. Raises ValueError with the place of a mistake.

    grid: the names of the cells that @* stands for.
    """
    return [
        (parse_metric(one), parse_bound(text))
        for name, bounds in (expect or {}).items()
        for bound in (bounds if _is_list(bounds) else [bounds])
        for one, text in _in_each_cell(name, _text(name, bound), grid)
    ]


def check(config: Config) -> None:
    """Raises ValueError where a recipe's claims cannot be read, or name a variant or cell that it does not have."""
    known_variants, known_cells = variants(config), cells(config)
    for metric, bound in expectations(config.get("expect"), known_cells):
        for used in (metric, *bound.expression.metrics()):
            if used.variant not in known_variants:
                names = ", ".join(name for name in known_variants if name) or "none"
                raise ValueError(f"expected {used} of a variant under versus ({names}), got {used.variant!r}")
            if used.cell not in known_cells:
                names = ", ".join(f"@{name}" for name in known_cells if name) or "none: there is no grid"
                raise ValueError(f"expected {used} of a cell of the grid ({names}), got {used.cell or 'no cell'!r}")


def jobs(recipe: str, config: Config, seeds: Sequence[int]) -> list[Job]:
    """All runs of a recipe: cells times variants times seeds. Raises ValueError as `check`."""
    check(config)
    needs = tuple((config.get("needs") or {}).items())
    combinations = product(cells(config).items(), variants(config).items(), seeds)
    return [
        Job(recipe, variant, cell, seed, (*setting, *overrides), needs)
        for (cell, setting), (variant, overrides), seed in combinations
    ]


def cell_of(config: Config) -> str:
    """The cell of the grid that a composed config stands for; "" if none."""
    grid = config.get("grid") or {}
    name = cell_name([_lookup(config, key.lstrip("+")) for key in grid])
    return name if name in cells(config) else ""


def judge(expect: Config | None, runs: Runs, grid: Iterable[str] = ()) -> list[Verdict]:
    """A verdict for each bound, on the means over seeds. What was not run or not measured is said in `note`.

    grid: the names of its cells, `cells(config)`.
    A single training of a recipe: judge(expect, {run_name("", cell_of(config)): [results]}, cells(config)).
    """
    return [_judged(metric, bound, runs) for metric, bound in expectations(expect, grid)]


def _judged(metric: Metric, bound: Bound, runs: Runs) -> Verdict:
    note = next(_missing([metric, *bound.expression.metrics()], runs), "")
    if note:
        return Verdict(str(metric), bound.text, note=note)

    def samples(used: Metric) -> list[float]:
        return [results[used.name] for results in runs[run_name(used.variant, used.cell)]]

    try:
        return _compared(metric, bound, samples)
    except TooFewSeeds as error:
        return Verdict(str(metric), bound.text, note=str(error))


def _compared(metric: Metric, bound: Bound, samples: Samples) -> Verdict:
    values = samples(metric)
    measured, threshold = fmean(values), bound.expression.value(samples)
    margins = [value - bound.expression.value(samples, seed) for seed, value in enumerate(values)]
    return Verdict(
        metric=str(metric),
        bound=bound.text,
        met=bound.holds(measured, threshold),
        measured=measured,
        threshold=threshold,
        spread=deviation(values) if len(values) > 1 else None,
        paired=deviation(margins) if len(values) > 1 else None,
        seeds=len(values),
        note="" if math.isfinite(measured - threshold) else "not a finite number",
    )


def _missing(used: Sequence[Metric], runs: Runs) -> Iterator[str]:
    """What cannot be read: runs that were not made, seeds that lack one, metrics that were not logged."""
    for metric in used:
        name = run_name(metric.variant, metric.cell)
        if not runs.get(name):
            yield f"needs {name or 'the recipe itself'}"
    if len({len(runs[run_name(metric.variant, metric.cell)]) for metric in used}) > 1:
        yield "needs the same seeds of all runs"
    for metric in used:
        for results in runs[run_name(metric.variant, metric.cell)]:
            if metric.name not in results:
                near = get_close_matches(metric.name, results, n=3) or sorted(results)
                yield f"no metric {metric.name}; there is {', '.join(near)}"


def _lookup(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _in_each_cell(name: str, bound: str, grid: Iterable[str]) -> list[tuple[str, str]]:
    """A claim on @* once for each cell of a grid."""
    named = [cell for cell in grid if cell] if "@*" in name else []
    return [(name.replace("@*", f"@{cell}"), bound.replace("@*", f"@{cell}")) for cell in named] or [(name, bound)]


def _text(metric: str, bound: object) -> str:
    if not isinstance(bound, str):
        raise ValueError(f"expected a bound on {metric} such as '>= 0.9', in quotes, got {bound!r}")
    return bound


def literal(value: object) -> str:
    """A plain value as the right side of an override. Raises ValueError for a list or a mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float | str):
        raise ValueError(f"expected a number, a word or null, got {value!r}")
    simple = re.fullmatch(r"[\w./+@-]+", str(value))
    return str(value) if simple else "'" + str(value).replace("'", "\\'") + "'"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
