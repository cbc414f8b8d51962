"""The tensors a solve depends on, and the state of autocast around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ndeflow.contracts import Problem
from ndeflow.numerics import field
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.transforms import refuse_all


def needs_module(problem: Problem, adjoint: str) -> None:
    """Raise ValueError unless parameters can be found: the field is a module, and no torch.func transform is on."""
    refuse_all(adjoint)
    if not isinstance(problem.field, nn.Module):
        raise ValueError(
            f"expected an nn.Module as field for {adjoint}, which must find its parameters, got "
            f"{type(problem.field).__name__}; wrap the function in a module, or use Direct()"
        )


def parameters(problem: Problem) -> list[Tensor]:
    """The parameters and buffers that need gradients, of the field and of the integrands, each once."""
    return list({id(x): x for x in tensors(problem) if x.requires_grad}.values())


def tensors(problem: Problem) -> Iterator[Tensor]:
    """All their parameters and buffers."""
    return (x for module in modules(problem) for x in (*module.parameters(), *module.buffers()))


def modules(problem: Problem) -> list[nn.Module]:
    """The field, where it is one, and the integrands."""
    return [m for m in (problem.field, *[m for m, _ in problem.integrands]) if isinstance(m, nn.Module)]


def records(problem: Problem) -> bool:
    """Whether a solve of the problem records gradients."""
    if not torch.is_grad_enabled():
        return False
    if any(map(_trains, modules(problem))):
        return True
    return any([x.requires_grad for x in (problem.y0, problem.ts, *conditions(problem))])


def _trains(module: nn.Module) -> bool:
    """Whether a parameter or buffer of a module or its parts needs gradients, found in little time."""
    for tensors in (module._parameters, module._buffers):
        for x in tensors.values():
            if x is not None and x.requires_grad:
                return True
    for part in module._modules.values():
        if part is not None and _trains(part):
            return True
    return False


def conditions(problem: Problem) -> list[Tensor]:
    """The leaves of the context and of the integrands' own contexts, in order."""
    return field.conditions(problem.context, problem.integrands)


def conditioned(system: InitialValue, new: Sequence[Tensor], edges: Tensor) -> InitialValue:
    """The system reading other conditions, and other edges where these need gradients."""
    other = system.with_conditions(new)
    return other.with_edges(edges) if edges.requires_grad or system.segments.edges.requires_grad else other


def detached(x: Tensor) -> Tensor:
    """The same values as a leaf of a new graph, needing a gradient if x does."""
    return x.detach().requires_grad_() if x.requires_grad else x


def carried(carry: Any) -> list[Tensor]:
    """The tensors of a carry: none, one, or a tuple of them."""
    if carry is None:
        return []
    return [carry] if isinstance(carry, Tensor) else list(carry)


def packed(tensors: Sequence[Tensor]) -> Any:
    """The carry of so many tensors; the opposite of `carried`."""
    return tuple(tensors) if len(tensors) > 1 else next(iter(tensors), None)


def like_carry(carry: Any, new: Sequence[Tensor]) -> Any:
    """A carry of the same kind made of other tensors."""
    if carry is None:
        return None
    return new[0] if isinstance(carry, Tensor) else type(carry)(new)


def taken(x: Tensor | None, rows: Tensor | None) -> Any:
    """Some rows of x; rows None: all, x None: None."""
    return x if x is None or rows is None else x[rows]


def put(x: Tensor | None, rows: Tensor | None, new: Tensor | None, count: int) -> Any:
    """x (count, ...) with new rows in place of its own; rows None: all of them. As x or as new, None is zero."""
    if rows is None or (x is None and new is None):
        return new
    if new is None:
        return x.index_fill(0, rows, 0.0) if x is not None else None
    x = new.new_zeros(count, *new.shape[1:]) if x is None else x
    return x.index_copy(0, rows, new)


def put_all(xs: Sequence[Any], rows: Tensor | None, new: Sequence[Any], count: int) -> list[Any]:
    """`put` of each tensor of a carry; an empty carry is zero."""
    if rows is None:
        return list(new)
    return [put(x, rows, y, count) for x, y in zip_longest(xs, new)]


def grads(
    outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], **options: Any
) -> list[Tensor | None]:
    """Vector-Jacobian products; an output without cotangent or graph is left out, an input without a path is None."""
    pairs = [
        (o, c) for o, c in zip(outputs, cotangents, strict=True) if o is not None and c is not None and o.requires_grad
    ]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    out, ct = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(out, wanted, ct, allow_unused=True, **options))
    return [next(found) if x.requires_grad else None for x in inputs]


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, None standing for zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


class Ambient(NamedTuple):
    """Autocast as it was when the forward pass ran, to be entered again in the backward pass; dtype: None where off.

    Without its cache of cast weights: a cast made without gradients must not be reused with them.
    """

    device: str
    dtype: torch.dtype | None
    enabled: bool

    @classmethod
    def of(cls, y0: Tensor) -> Ambient:
        device = y0.device.type
        enabled = torch.is_autocast_enabled(device)
        return cls(device, torch.get_autocast_dtype(device) if enabled else None, enabled)

    def eps(self, z: Tensor) -> float:
        """The rounding unit of what is computed of z."""
        return max(torch.finfo(kind).eps for kind in (z.dtype, self.dtype) if kind is not None)

    def __call__(self) -> AbstractContextManager[Any]:
        if not self.enabled and not torch.is_autocast_enabled(self.device):
            return nullcontext()
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)
