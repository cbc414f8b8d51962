"""Outer products of rows, flattened after what is done to their elements rather than before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)


def flatten_late(graph: fx.GraphModule) -> None:
    """Rewrite f(flat(a b^T), x) as flat(f(a b^T, x in its shape)), for an f of elements, in place.

    The gradient of a matrix that was multiplied by a vector is such a product. In its own shape the compiler finds the
    elements of a and b by loops, flattened by a division for each element of the product, which takes several times as
    long. To be called where the graph was traced: new values are traced too.
    """
    shaped: dict[fx.Node, fx.Node] = {}  # flat values, and the same in the shape of a product
    for node in list(graph.graph.nodes):
        if node.target in _VIEWS:
            source = shaped.get(node.args[0], node.args[0])
            if source in shaped.values() or _is_outer(source):
                shaped[node] = source
        elif _is_elementwise(node) and not shaped.keys().isdisjoint(node.all_input_nodes):
            _reshape(graph.graph, node, shaped)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _reshape(graph: fx.Graph, node: fx.Node, shaped: dict[fx.Node, fx.Node]) -> None:
    """Replace a node by the flattened result of the same operation in the shape of the first product it reads."""
    shape = next(_shape(shaped[x]) for x in node.all_input_nodes if x in shaped)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = graph.call_function(target, args, kwargs)
        new.meta["val"] = target(*map_arg(args, _value), **map_arg(kwargs, _value))
        return new

    def moulded(x: fx.Node) -> fx.Node:
        if x in shaped and _shape(shaped[x]) == shape:
            return shaped[x]
        return call(aten.view.default, x, [-1, *shape[1:]]) if x.meta["val"].dim() else x

    with graph.inserting_before(node):
        result = call(node.target, *map_arg(node.args, moulded), **map_arg(node.kwargs, moulded))
        flat = call(aten.view.default, result, [-1, *_shape(node)[1:]])
    shaped[flat] = result
    node.replace_all_uses_with(flat)


def _is_outer(node: fx.Node) -> bool:
    """Whether it is the product of a column and a row, for each of the rows of a batch."""
    return node.target is aten.bmm.default and _shape(node.all_input_nodes[0])[2] == 1


def _is_elementwise(node: fx.Node) -> bool:
    """Whether it is made element by element of contiguous values of its own shape and of numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.pointwise not in node.target.tags:
        return False
    values = [node.meta["val"], *(x.meta["val"] for x in node.all_input_nodes)]
    return all(
        isinstance(x, Tensor) and (x.dim() == 0 or (x.shape == values[0].shape and x.is_contiguous())) for x in values
    )


def _shape(node: fx.Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
