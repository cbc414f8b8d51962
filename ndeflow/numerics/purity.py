"""What a right-hand side must leave as it is, for its evaluations can be repeated then: found by comparing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def versions(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Which tensors these are, and how often each was written into."""
    return [(id(x), 0 if x.is_inference() else x._version) for x in tensors]


def gathers(modules: Iterable[nn.Module]) -> str | None:
    """The name of a layer that gathers running statistics in these modes of the modules; None: there is none."""
    layers = (part for module in modules for part in module.modules() if isinstance(part, _NormBase))
    return next((type(x).__name__ for x in layers if x.training and x.running_mean is not None), None)


@contextmanager
def repeatable(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """What is evaluated inside is to be evaluated again.

    Raises ValueError at the end where that would not give the same: if random numbers were drawn or buffers written, as
    by a layer that gathers running statistics.
    """
    drawn, written = _draws(device), versions(_buffers(modules))
    yield
    if not all(map(torch.equal, drawn, _draws(device))):
        raise ValueError(
            "expected a field that is a function, for its steps are taken again, got one that draws random numbers; "
            "call .eval(), draw once a solve and pass the draw as context, or use Direct()"
        )
    if written != versions(_buffers(modules)):
        layer, found, cure = gathers(modules), "writes into its buffers", "call .eval()"
        if layer is not None:
            found, cure = f"gathers running statistics in its {layer}", f"use LayerNorm or GroupNorm, {cure} on it"
        raise ValueError(
            f"expected a field that is a function, for its steps are taken again, got one that {found}; {cure}, or use "
            "Direct()"
        )


@final
class Repeats:
    """Whether steps taken again come to where they came before, to half the digits; eps: the rounding unit."""

    def __init__(self, eps: float) -> None:
        self.slack = math.sqrt(eps)
        self.off: list[tuple[int, Tensor]] = []

    def see(self, n: int, start: Tensor, before: Tensor | None, again: Tensor) -> None:
        """Step n from `start`, that came to `before`, None: that is not known, and comes to `again`."""
        if before is not None:
            self.off.append((n, self._off(start, before, again)))

    def missed(self) -> int | None:
        """The step that is furthest off, None: none is too far. Reads one number from the device."""
        if not self.off:
            return None
        worst, place = torch.stack([off for _, off in self.off]).nan_to_num(nan=math.inf).max(dim=0)
        return self.off[int(place)][0] if worst.item() > 0 else None

    def check(self, start: Tensor, before: Tensor, again: Tensor) -> None:
        """Raise ValueError where a step that missed, taken once more without gradients as at first, misses again.

        With gradients some layers are computed otherwise.
        """
        if not self._off(start, before, again).item() <= 0:
            raise ValueError(
                "expected a field that gives the same values in the backward pass, where its steps are taken again, "
                "got others; pass what changes between solves, and what is drawn, as context, or use Direct()"
            )

    def _off(self, start: Tensor, before: Tensor, again: Tensor) -> Tensor:
        """How much further off than half the digits allow."""
        size = torch.maximum(start.abs().amax(), before.abs().amax())
        return (again.detach() - before).abs().amax() - self.slack * size


def drawn_elsewhere() -> int:
    """A number that changes when Python's or NumPy's generators draw."""
    state: Any = numpy.random.get_state()
    return hash((random.getstate(), state[1].tobytes(), *state[2:]))


def _draws(device: torch.device) -> list[Tensor]:
    """The states of torch's default generators."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.tensor(torch.cuda.default_generators[device.index or 0].get_offset()))
    return states


def _buffers(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    return (x for module in modules for x in module.buffers())
