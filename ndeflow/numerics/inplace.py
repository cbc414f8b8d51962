"""Operations that write into a fresh intermediate result, replaced by what gives a new one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ndeflow.numerics.audit import writes

aten = torch.ops.aten


def write_anew(graph: fx.Graph) -> None:
    """Replace x.op_(...) by y = x.op(...), and x by y in all that follows, where no view of x is read before or after.

    So much of functionalization is needed for the gradients of torch's own operations, and costs no further trace.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        x = node.args[0] if writes(node) and node.args else None
        twin = _twin(node)
        if not isinstance(x, fx.Node) or twin is None or not _fresh(x):
            continue
        with graph.inserting_before(node):
            new = graph.call_function(twin, node.args, node.kwargs)
        new.meta["val"] = twin(*map_arg(node.args, _value), **map_arg(node.kwargs, _value))
        if _alike(new.meta["val"], x.meta["val"]):
            node.replace_all_uses_with(new)
            x.replace_all_uses_with(new, lambda user, start=place[node]: place.get(user, start) > start)
            graph.erase_node(node)
        else:
            graph.erase_node(new)


def _twin(node: fx.Node) -> Any:
    """The operation of the same arguments that gives a new result; None: there is none."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    name = node.target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, node.target._overloadname, None)


def _fresh(x: fx.Node) -> bool:
    """Whether it is a result of its own memory, of which there are no views."""
    makes = [x, *x.users]
    return x.op == "call_function" and all(
        isinstance(u.target, torch._ops.OpOverload) and not u.target.is_view for u in makes
    )


def _alike(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
