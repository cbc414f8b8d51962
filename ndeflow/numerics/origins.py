"""What a retaken evaluation must depend on: the tensors that gradients are asked of, and no other that needs one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from ndeflow.contracts import Problem
from ndeflow.numerics import replay

CURE = "or use Direct()"


def check_unmoved(problem: Problem, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError where the modules of a problem have other tensors than these, which they had in its solve."""
    now = replay.parameters(problem)
    if len(now) != len(tensors) or any(a is not b for a, b in zip(now, tensors, strict=True)):
        raise ValueError(
            "expected in the backward pass a field with the parameters of its solve, which is taken again, got other "
            f"ones; inside of torch.func.functional_call call backward there too, {CURE}"
        )


def check_origins(outputs: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> None:
    """Raise ValueError where outputs depend on a leaf that needs gradients and is no input, or an input on another."""
    known, made = {id(x) for x in inputs}, [x for x in inputs if x.grad_fn is not None]
    for leaf in _leaves([x for x in outputs if x is not None], {x.grad_fn for x in made}):
        if id(leaf) not in known:
            raise ValueError(
                "expected a field that depends on its parameters and buffers, on state, time and context, got one that "
                f"depends on another tensor {tuple(leaf.shape)} that needs gradients; make it one of these, {CURE}"
            )
    if any(id(leaf) in known for leaf in _leaves(made, set())):
        raise ValueError(
            "expected parameters and buffers that are not computed from one another, got such, which would count "
            f"twice; compute them in the field's forward, {CURE}"
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
