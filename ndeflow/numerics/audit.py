"""What a field must not do if it is to be traced once and replayed: found in its traced graph, said in plain words."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from ndeflow.numerics.fingerprint import hooks
from ndeflow.numerics.purity import drawn_elsewhere, gathers


class Refusal(Exception):
    """A field that cannot be compiled; the message says why, and what to do."""


def inspect(modules: Iterable[nn.Module]) -> None:
    """Raise `Refusal` for modules whose calls do more than their graphs: hooks, and running statistics."""
    modules = list(modules)
    hooked = next((part for module in modules for part in module.modules() if hooks(part)), None)
    if hooked is not None:
        raise Refusal(
            f"its {type(hooked).__name__} has hooks, which would be called no more once it is traced; remove them, "
            "or for weight_norm and spectral_norm use those of torch.nn.utils.parametrizations"
        )
    layer = gathers(modules)
    if layer is not None:
        raise Refusal(
            f"its {layer} gathers running statistics, once more for every step and every replay of it; "
            "use LayerNorm or GroupNorm, or call .eval()"
        )


@contextmanager
def steady() -> Iterator[None]:
    """Raise `Refusal` if random numbers of Python's or NumPy's are drawn inside: a trace would keep them for ever."""
    before = drawn_elsewhere()
    yield
    if drawn_elsewhere() != before:
        raise Refusal(f"it draws random numbers of Python's or NumPy's, {_DRAWN}")


_DRAWN = (
    "which a replay would draw anew; a right-hand side must be a function: call .eval(), or draw once a solve and "
    "pass the draw as context"
)


def audit(graph: fx.GraphModule) -> None:
    """Raise `Refusal` for a graph that draws random numbers, reads values, or writes into its arguments."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten._local_scalar_dense.default:
            raise Refusal(_READS)
        if torch.Tag.nondeterministic_seeded in node.target.tags and _argument(node, "dropout_p") != 0:
            raise Refusal(f"it draws random numbers ({node.target.name()}), {_DRAWN}")
        if writes(node) and _origin(_written(node)).op == "placeholder":
            raise Refusal(
                f"it writes into its arguments, parameters or buffers ({node.target.name()}); "
                "write into a copy, or for a layer that does so in training mode call .eval()"
            )


def writes(node: fx.Node) -> bool:
    """Whether it is an operation that writes into an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an operation by its name; None: it has none."""
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None


def _written(node: fx.Node) -> fx.Node:
    """The argument that a mutable operation writes to."""
    schema = node.target._schema  # type: ignore[union-attr]
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = _argument(node, argument.name)
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


_READS = "it branches on values, or reads a number out of a tensor; use torch.where, and no float(), .item() or if"

_CAUSES = (
    (
        ("convert all Tensors to FakeTensors",),
        "it reads a tensor that is neither an argument nor a parameter or buffer; "
        "register it (register_buffer), or pass it as context",
    ),
    (
        ("data-dependent", "Could not guard", "Could not extract specialized", "DataDependentOutput", "_local_scalar"),
        _READS,
    ),
    (("numpy",), "it leaves torch for NumPy; use torch functions"),
)


def explain(error: Exception) -> str:
    """Why tracing failed, in a user's terms."""
    text = f"{type(error).__name__}: {error}"
    if any("torch/utils/checkpoint.py" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
        return "it uses torch.utils.checkpoint; leave that out, and use adjoint=Checkpointed() instead"
    for marks, cause in _CAUSES:
        if any(mark in text for mark in marks):
            return cause
    return f"it cannot be traced ({text.splitlines()[0][:200]})"
