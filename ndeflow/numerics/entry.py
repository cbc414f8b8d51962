"""What is known of a field in one setting, from solve to solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from ndeflow.numerics import replay
from ndeflow.numerics.fingerprint import Attribute
from ndeflow.numerics.form import Form
from ndeflow.numerics.packing import Line
from ndeflow.numerics.system import InitialValue


@final
@dataclass
class Entry:
    """What is known of a field in one setting.

    columns: how many integrals it has. reached: which of the module tensors need gradients and get one. line: how these
    are handed over. reads: collects the attributes that its programs have read. rows: the numbers of rows for which
    they are known to be these. programs: of each function, for one row or for more; None in a list: there are no more,
    the function itself is called. found: which of them is for a function and a number of rows. prepared: the passes
    whose programs were made ahead. refusal: why they cannot. zeros: to start their totals from.
    """

    columns: int
    reached: list[int]
    line: Line
    reads: set[Attribute]
    rows: set[int]
    programs: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)
    found: dict[tuple[str, int], Any] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    refusal: str | None = None
    zeros: list[Tensor] | None = None

    @classmethod
    def of(cls, form: Form, system: InitialValue, tensors: Sequence[Tensor], reads: set[Attribute]) -> Self:
        """Found by evaluating the field once; raises ValueError for rates of the wrong shape.

        Apart from all that the start, the context and the times were made from: that graph is another's to use, and
        none is in inference mode, though what is found is for training too.
        """
        with torch.inference_mode(False), torch.enable_grad():
            apart = system.with_conditions([x.detach().clone() for x in system.conditions()])
            apart.problem = replace(system.problem, y0=system.problem.y0.detach().clone())
            apart.segments = replace(system.segments, edges=system.segments.edges.detach().clone())
            rates = form.probe(apart)
            found = replay.grads(rates, tensors, [torch.ones_like(rate) for rate in rates])
        reached = [i for i, g in enumerate(found) if g is not None]
        return cls(apart.columns, reached, Line.of([tensors[i] for i in reached]), reads, {system.rows})
