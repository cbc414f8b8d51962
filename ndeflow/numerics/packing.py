"""Small tensors that one program hands to another, in one line: to hand one over costs as much as to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from math import prod
from typing import Any, Self, final

import torch
from torch import Tensor

Places = tuple[list[Any], list[Any], list[Any]]


@final
@dataclass(frozen=True, eq=False)
class Line:
    """How tensors are put in one: flat, one behind the other.

    shapes: of those in the line, by their places among all; None stands for the number of rows. count: of the tensors
    that there are instead.
    """

    shapes: dict[int, tuple[int | None, ...]]
    count: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor], apart: Sequence[int] = (), rows: Any = None) -> Self:
        """Of tensors those of one dtype and device whose sizes are numbers, or the number of rows.

        apart: places of those that stay as they are.
        """
        plain = {i: x for i, x in enumerate(tensors) if i not in apart and all(_known(n, rows) for n in x.shape)}
        kinds = [(x.dtype, x.device) for x in plain.values()]
        most = max(kinds, key=kinds.count, default=None)
        shapes = {i: tuple(n if isinstance(n, int) else None for n in x.shape) for i, x in plain.items()}
        chosen = [i for i, kind in zip(plain, kinds, strict=True) if kind == most]
        if len(chosen) < 2:
            return cls({}, len(tensors))
        return cls({i: shapes[i] for i in chosen}, len(tensors) - len(chosen) + 1)

    def pack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that are not in the line, and it."""
        if not self.shapes:
            return [*tensors]
        others = [x for i, x in enumerate(tensors) if i not in self.shapes]
        return [*others, torch.cat([tensors[i].reshape(-1) for i in self.shapes])]

    def unpack(
        self, packed: Sequence[Tensor], rows: Any = None, part: Callable[..., Tensor] = Tensor.as_strided
    ) -> list[Tensor]:
        """All tensors as they were, from what `pack` gave; rows: their number.

        part: makes those in the line, of it, sizes, strides and an offset: its views.
        """
        if not self.shapes:
            return [*packed]
        *others, line = packed
        parts = [*map(part, repeat(line), *(self._fixed if rows is None else self._places(rows)))]
        if not others:
            return parts
        rest, found = iter(others), dict(zip(self.shapes, parts, strict=True))
        return [found[i] if i in found else next(rest) for i in range(len(others) + len(found))]

    @cached_property
    def _fixed(self) -> Places:
        return self._places(None)

    def _places(self, rows: Any) -> Places:
        """Sizes, strides and offsets of the tensors in the line."""
        shapes = [[rows if n is None else n for n in known] for known in self.shapes.values()]
        strides = [[prod(shape[i + 1 :]) for i in range(len(shape))] for shape in shapes]
        offsets = [*accumulate(map(prod, shapes), initial=0)]
        return shapes, strides, offsets[:-1]


def _known(size: Any, rows: Any) -> bool:
    """Symbols are compared by their names: to compare them as numbers would fix them."""
    return isinstance(size, int) or str(size) == str(rows)
