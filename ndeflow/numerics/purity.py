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
    """What is evaluated inside is to be evaluated again; raises ValueError where that would not give the same.

    At once for a layer that gathers running statistics, at the end if random numbers were drawn or buffers written.
    """
    layer = gathers(modules)
    if layer is not None:
        raise ValueError(
            f"expected a field without running statistics, for its steps are taken again, got {layer} in training "
            "mode; use LayerNorm or GroupNorm, call .eval() on it, or use Direct()"
        )
    drawn, written = _draws(device), versions(_buffers(modules))
    yield
    if not all(map(torch.equal, drawn, _draws(device))):
        raise ValueError(
            "expected a field that is a function, for its steps are taken again, got one that draws random numbers; "
            "call .eval(), draw once a solve and pass the draw as context, or use Direct()"
        )
    if written != versions(_buffers(modules)):
        raise ValueError(
            "expected a field that is a function, for its steps are taken again, got one that writes into its buffers; "
            "call .eval(), or use Direct()"
        )


@final
class Repeats:
    """Whether steps taken again come to where they came before, to half the digits; eps: the rounding unit."""

    def __init__(self, eps: float) -> None:
        self.slack = math.sqrt(eps)
        self.off: list[Tensor] = []

    def see(self, start: Tensor, before: Tensor | None, again: Tensor) -> None:
        """A step from `start` that came to `before`, None: that is not known, and comes to `again`."""
        if before is not None:
            size = torch.maximum(start.abs().amax(), before.abs().amax())
            self.off.append((again.detach() - before).abs().amax() - self.slack * size)

    def check(self) -> None:
        """Raise ValueError where one does not. Reads one number from the device."""
        if self.off and not torch.stack(self.off).amax().item() <= 0:
            raise ValueError(
                "expected a field that gives the same values in the backward pass, where its steps are taken again, "
                "got others; pass what changes between solves, and what is drawn, as context, or use Direct()"
            )


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
