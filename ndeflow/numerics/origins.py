"""What a retaken evaluation depends on: the tensors that gradients are asked of, and no other that outlives it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import final

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ndeflow.contracts import Problem
from ndeflow.numerics import replay

CURE = "or use Direct()"


def check_unmoved(problem: Problem, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError where the modules of a problem have no longer these tensors, which they had in its solve."""
    now = {id(x) for x in replay.tensors(problem)}
    if not all(id(x) in now for x in tensors):
        raise ValueError(
            "expected in the backward pass a field with the parameters of its solve, which is taken again, got other "
            f"ones; inside of torch.func.functional_call call backward there too, {CURE}"
        )


def check_apart(inputs: Sequence[Tensor]) -> None:
    """Raise ValueError where one of these tensors was computed from another."""
    known = {id(x) for x in inputs}
    if any(id(leaf) in known for leaf in _leaves([x for x in inputs if x.grad_fn is not None], set())):
        raise ValueError(
            "expected parameters and buffers that are not computed from one another, got such, which would count "
            f"twice; compute them in the field's forward, {CURE}"
        )


@final
class Origins:
    """Looks once at what an evaluation that autograd recorded depends on, and again when its graph is gone.

    A leaf that needs gradients, is none of the inputs and is there still was not made by the evaluation itself: its
    gradient would be lost.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.others: list[TensorWeakRef] | None = None

    def see(self, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> None:
        """Of the first evaluation. Raises ValueError where an input was computed from another."""
        if self.others is not None:
            return
        check_apart(inputs)
        known = {id(x) for x in (*inputs, *replay.tensors(self.problem))}
        ends: set[object] = {x.grad_fn for x in inputs if x.grad_fn is not None}
        leaves = _leaves([x for x in outputs if x is not None], ends)
        self.others = [TensorWeakRef(leaf) for leaf in leaves if id(leaf) not in known]

    def check(self) -> None:
        """Raise ValueError where a leaf is left."""
        if not self.others or all(other() is None for other in self.others):
            return
        gc.collect()
        left = next((leaf for other in self.others if (leaf := other()) is not None), None)
        if left is not None:
            raise ValueError(
                "expected a field that depends on its parameters and buffers, on state, time and context, got one that "
                f"depends on another tensor {tuple(left.shape)} that needs gradients; make it one of these, {CURE}"
            )


def _leaves(tensors: Iterable[Tensor], ends: set[object]) -> Iterator[Tensor]:
    """The leaves that tensors depend on, by ways that do not lead through the nodes that are `ends`."""
    stack, seen = [x.grad_fn for x in tensors], set(ends)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that gather gradients alone
        if isinstance(leaf, Tensor):
            yield leaf
        stack += [parent for parent, _ in node.next_functions]
