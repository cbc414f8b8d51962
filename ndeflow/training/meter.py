"""Averages and maxima of what training steps report, without reading a number off the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, final

import torch
from torch import Tensor

Value = Tensor | float
Reduce = Callable[[Tensor, str], Tensor]


@final
class Meter:
    """Means and maxima over training steps.

    A step calls `add` as often as it likes; `commit` closes the step; `discard` forgets an unfinished one, as if it
    had not begun. A name's mean is taken over the times it was added. Committing costs one stack and one addition.
    """

    def __init__(self) -> None:
        self._pending: tuple[dict[str, list[Value]], dict[str, list[Value]]] = ({}, {})
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._maxima: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: Mapping[str, Value], maxima: Mapping[str, Value] | None = None) -> None:
        """Note scalars of the current step: `values` to be averaged, `maxima` of which the largest is kept.

        Tensors have one element and may carry a graph, which is dropped. Raises ValueError for other shapes.
        """
        for place, given in zip(self._pending, (values, maxima or {}), strict=True):
            for name, value in given.items():
                place.setdefault(name, []).append(_scalar(name, value))

    def commit(self) -> None:
        """Take what was added since the last call into the means and maxima."""
        values, maxima = self._pending
        for names, stacked in _stacked(values):
            total, count = self._sums.get(names, (torch.zeros_like(stacked), 0))
            self._sums[names] = total.to(stacked.device) + stacked, count + 1
        for names, stacked in _stacked(maxima):
            kept = self._maxima.get(names, stacked)
            self._maxima[names] = torch.maximum(kept.to(stacked.device), stacked)
        self.discard()

    def discard(self) -> None:
        """Forget what was added since the last commit."""
        self._pending = ({}, {})

    def peek(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Means and maxima so far. `reduce(tensor, "mean" or "max")` combines those of several processes."""
        means = _merged([(names, total, count) for names, (total, count) in self._sums.items()], torch.add)
        largest = _merged([(names, kept, 1) for names, kept in self._maxima.items()], torch.maximum)
        found: dict[str, float] = {}
        for entries, how in ((means, "mean"), (largest, "max")):
            if entries:
                values = torch.stack([total / count if how == "mean" else total for total, count in entries.values()])
                found |= zip(entries, (values if reduce is None else reduce(values, how)).tolist(), strict=True)
        return found

    def flush(self, reduce: Reduce | None = None) -> dict[str, float]:
        """As `peek`, and start anew."""
        found = self.peek(reduce)
        self._sums, self._maxima = {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Committed sums and maxima, as plain values and tensors: an average can go on after a resume, exactly."""
        return {
            "sums": [[list(names), total.clone(), count] for names, (total, count) in self._sums.items()],
            "maxima": [[list(names), kept.clone()] for names, kept in self._maxima.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another meter's state; what this one held is dropped."""
        self._sums = {tuple(names): (total, count) for names, total, count in state["sums"]}
        self._maxima = {tuple(names): kept for names, kept in state["maxima"]}
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


def _stacked(pending: dict[str, list[Value]]) -> list[tuple[tuple[str, ...], Tensor]]:
    """Each round of additions as names and one tensor (K,) of what was given as tensors, and one of what was not.

    float64 where the device has it.
    """
    rounds = []
    for place in range(max((len(v) for v in pending.values()), default=0)):
        chosen = {name: values[place] for name, values in pending.items() if place < len(values)}
        tensors = {name: value for name, value in chosen.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in chosen.items() if name not in tensors}
        device = next((t.device for t in tensors.values() if t.device.type != "cpu"), torch.device("cpu"))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if tensors:
            stacked = torch.stack([t if t.device == device else t.to(device) for t in tensors.values()])
            rounds.append((tuple(tensors), stacked.to(dtype)))
        if numbers:
            rounds.append((tuple(numbers), torch.tensor(list(numbers.values()), dtype=dtype, device=device)))
    return rounds


def _merged(
    entries: list[tuple[tuple[str, ...], Tensor, int]], combine: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, tuple[Tensor, int]]:
    """Name -> combined 0-dim tensor and count, from tensors (K,) of K names each."""
    found: dict[str, tuple[Tensor, int]] = {}
    for names, tensor, count in entries:
        for name, value in zip(names, tensor, strict=True):
            before = found.get(name)
            found[name] = (value, count) if before is None else (combine(before[0], value), before[1] + count)
    return found
