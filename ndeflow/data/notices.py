"""What is wrong with data: the error of an absent set, and warnings about what is accepted but looks odd."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

MOST_MISSING, LONGEST_GAP, MOST_CLASSES = 0.9, 100.0, 20


class MissingData(ValueError):
    """A data set is not on this machine; the message says how to get it."""


class DataWarning(UserWarning):
    """The data were accepted, but look at this."""


def installed(package: str, path: str, install: str) -> Path:
    """A file or folder inside an installed package, which is not imported. Raises MissingData with the install line."""
    spec = find_spec(package)
    place = Path(spec.origin).parent / path if spec is not None and spec.origin is not None else None
    if place is None or not place.exists():
        raise MissingData(f"expected {path} of the package {package}; run: {install}")
    return place


def warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=3)


def notice_order(codes: np.ndarray, time: np.ndarray) -> None:
    """Warn if an id's rows (R,) are not in the order of time; they are sorted anyway."""
    stable = np.argsort(codes, kind="stable")
    backward = (np.diff(time[stable]) < 0) & (np.diff(codes[stable]) == 0)
    if backward.any():
        warn("rows are not sorted by time within each id; they have been sorted")


def notice_missing(channels: Sequence[str], values: np.ndarray) -> None:
    """Warn of channels of `values` (R, C) that are mostly NaN."""
    share = np.isnan(values).mean(axis=0)
    sparse = [f"'{name}' ({part:.0%})" for name, part in zip(channels, share, strict=True) if part > MOST_MISSING]
    if sparse:
        warn(f"channel(s) {', '.join(sparse)} are mostly missing")


def notice_gaps(ids: Sequence[str], ts: Sequence[np.ndarray]) -> None:
    """Warn if the longest gap of N series of times is far above the median of all gaps."""
    gaps = np.concatenate([np.diff(t) for t in ts])
    longest = [np.diff(t).max(initial=0.0) for t in ts]
    worst = int(np.argmax(longest))
    if len(gaps) and longest[worst] > LONGEST_GAP * np.median(gaps):
        warn(f"id '{ids[worst]}' has a gap of {longest[worst]:g}, over {LONGEST_GAP:g} times the median gap "
             f"{np.median(gaps):g}")  # fmt: skip


def notice_cases(ids: Sequence[str]) -> None:
    """Warn of ids that differ in upper and lower case only."""
    first: dict[str, str] = {}
    for name in ids:
        twin = first.setdefault(name.casefold(), name)
        if twin != name:
            warn(f"ids '{twin}' and '{name}' differ in upper and lower case only; they are kept apart")
            return


def notice_classes(count: int) -> None:
    """Warn of so many classes that the target may be meant as a number."""
    if count > MOST_CLASSES:
        warn(f"{count} classes; if the target is a number to regress, set data.task=regression")
