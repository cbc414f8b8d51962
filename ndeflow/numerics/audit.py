"""What a field must not do if it is to be traced once and replayed: found in its traced graph, said in plain words."""

from __future__ import annotations

import torch
from torch import fx


class Refusal(Exception):
    """A field that cannot be compiled; the message says why, and what to do."""


def audit(graph: fx.GraphModule) -> None:
    """Raise `Refusal` for a graph that draws random numbers, or writes into its arguments."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Refusal(
                f"it draws random numbers ({node.target.name()}), which a replay would draw anew; "
                "a right-hand side must be a function: call .eval(), or draw once a solve and pass the draw as context"
            )
        if node.target._schema.is_mutable and _origin(_written(node)).op == "placeholder":
            raise Refusal(
                f"it writes into its arguments, parameters or buffers ({node.target.name()}); "
                "write into a copy; for batch normalisation use LayerNorm or GroupNorm, or call .eval()"
            )


def _written(node: fx.Node) -> fx.Node:
    """The argument that a mutable operation writes to."""
    schema = node.target._schema  # type: ignore[union-attr]
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(found, fx.Node):
                return found
    return node


def _origin(node: fx.Node) -> fx.Node:
    """The tensor whose memory this is, followed back through views and operations in place."""
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        returns = node.target._schema.returns
        source = next((x for x in node.args if isinstance(x, fx.Node)), None)
        if source is None or not returns or returns[0].alias_info is None:
            return node
        node = source
    return node


_CAUSES = (
    (
        ("convert all Tensors to FakeTensors",),
        "it reads a tensor that is neither an argument nor a parameter or buffer; "
        "register it (register_buffer), or pass it as context",
    ),
    (
        ("data-dependent", "Could not guard", "Could not extract specialized", "DataDependentOutput", "_local_scalar"),
        "it branches on values, or reads a number out of a tensor; use torch.where, and no float(), .item() or if",
    ),
    (("numpy",), "it leaves torch for NumPy; use torch functions"),
)


def explain(error: Exception) -> str:
    """Why tracing failed, in a user's terms."""
    text = f"{type(error).__name__}: {error}"
    for marks, cause in _CAUSES:
        if any(mark in text for mark in marks):
            return cause
    return f"it cannot be traced ({text.splitlines()[0][:200]})"
