"""Averages and maxima of what training steps report, without reading a number off the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, final

import torch
from torch import Tensor

Value = Tensor | float
Reduce = Callable[[Tensor, str], Tensor]
Row = Tensor | list[float]
Rows = dict[tuple[str, ...], list[Row]]  # names -> their values at each of the steps


@final
class Meter:
    """Means and maxima over training steps.

    A step calls `add` as often as it likes; `commit` closes the step; `discard` forgets an unfinished one, as if it
    had not begun. A name's mean is taken over the times it was added. Committing costs one stack; sums are taken, and
    numbers read off the device, when they are asked for.
    """

    def __init__(self) -> None:
        self._pending: tuple[dict[str, list[Value]], dict[str, list[Value]]] = ({}, {})
        self._values: Rows = {}
        self._maxima: Rows = {}

    def add(self, values: Mapping[str, Value], maxima: Mapping[str, Value] | None = None) -> None:
        """Note scalars of the current step: `values` to be averaged, `maxima` of which the largest is kept.

        Tensors have one element and may carry a graph, which is dropped. Raises ValueError for other shapes.
        """
        for place, given in zip(self._pending, (values, maxima or {}), strict=True):
            for name, value in given.items():
                place.setdefault(name, []).append(_scalar(name, value))

    def commit(self) -> None:
        """Keep what was added since the last call."""
        for pending, rows in zip(self._pending, (self._values, self._maxima), strict=True):
            for names, row in _rounds(pending):
                rows.setdefault(names, []).append(row)
        self.discard()

    def discard(self) -> None:
        """Forget what was added since the last commit."""
        self._pending = ({}, {})

    def peek(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Means and maxima so far. `reduce(tensor, "mean" or "max")` combines those of several processes."""
        means = {name: total / count for name, (total, count) in _totals(self._values).items()}
        found: dict[str, float] = {}
        for entries, how in ((means, "mean"), (_largest(self._maxima), "max")):
            if entries:
                values = torch.stack(list(entries.values()))
                found |= zip(entries, (values if reduce is None else reduce(values, how)).tolist(), strict=True)
        return found

    def flush(self, reduce: Reduce | None = None) -> dict[str, float]:
        """As `peek`, and start anew."""
        found = self.peek(reduce)
        self._values, self._maxima = {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was committed, as plain values and tensors: an average can go on after a resume, exactly."""
        kinds = {"values": self._values, "maxima": self._maxima}
        return {kind: [[list(names), _gathered(r)] for names, r in rows.items()] for kind, rows in kinds.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another meter's state; what this one held is dropped."""
        kinds = (state["values"], state["maxima"])
        self._values, self._maxima = ({tuple(names): list(rows) for names, rows in kind} for kind in kinds)
        self.discard()


class Metered(Protocol):
    """A LightningModule with a meter."""

    meter: Meter


def _scalar(name: str, value: Value) -> Value:
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"expected one number for {name!r}, got a tensor of shape {tuple(value.shape)}; average it")
    return value.detach() if value.ndim == 0 else value.detach().reshape(())


def _rounds(pending: dict[str, list[Value]]) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Each round of additions: names, and a copy of their values; tensors (K,) and numbers apart."""
    for place in range(max(map(len, pending.values()), default=0)):
        chosen = {name: values[place] for name, values in pending.items() if place < len(values)}
        tensors = {name: value for name, value in chosen.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in chosen.items() if not isinstance(value, Tensor)}
        device = next((t.device for t in tensors.values() if t.device.type != "cpu"), torch.device("cpu"))
        if tensors:
            yield tuple(tensors), torch.stack([t if t.device == device else t.to(device) for t in tensors.values()])
        if numbers:
            yield tuple(numbers), list(numbers.values())


def _gathered(rows: list[Row]) -> Tensor:
    """Rows of K values each, of as many steps, as one tensor (N, K); float64 where the device has it."""
    device = next((row.device for row in reversed(rows) if isinstance(row, Tensor)), torch.device("cpu"))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(row, dtype=dtype, device=device) for row in rows])


def _totals(rows: Rows) -> dict[str, tuple[Tensor, int]]:
    """Name -> sum (0-dim) and count."""
    found: dict[str, tuple[Tensor, int]] = {}
    for names, kept in rows.items():
        for name, value in zip(names, _gathered(kept).sum(dim=0), strict=True):
            total, count = found.get(name, (0.0, 0))
            found[name] = value + total, count + len(kept)
    return found


def _largest(rows: Rows) -> dict[str, Tensor]:
    """Name -> maximum (0-dim)."""
    found: dict[str, Tensor] = {}
    for names, kept in rows.items():
        for name, value in zip(names, _gathered(kept).amax(dim=0), strict=True):
            found[name] = torch.maximum(found[name], value) if name in found else value
    return found
