"""Outer products of rows, flattened after what is done to their elements rather than before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)

Shaped = dict[fx.Node, fx.Node]  # flat values, and the same in the shape of a product


def flatten_late(graph: fx.GraphModule) -> None:
    """Rewrite f(flat(a b^T), x) as flat(f(a b^T, x in its shape)), for an f of elements, or of columns, in place.

    The gradient of a matrix that was multiplied by a vector is such a product. In its own shape the compiler finds the
    elements of a and b by loops; flattened, by a division for each element of the product, which takes several times
    as long. To be called where the graph was traced: new values are traced too.
    """
    shaped: Shaped = {}
    for node in list(graph.graph.nodes):
        if node.target in _VIEWS:
            source = node.args[0] if _is_outer(node.args[0]) else shaped.get(node.args[0])
            if source is not None and _is_static(node):
                shaped[node] = source
        elif shaped and (_is_column(node, shaped) or _is_elementwise(node, shaped)):
            _reshape(graph.graph, node, shaped)
    if shaped:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _reshape(graph: fx.Graph, node: fx.Node, shaped: Shaped) -> None:
    """Put in its place the flattened result of the same operation in the shape of the first product it reads."""
    shape = next(_sizes(shaped[x]) for x in node.all_input_nodes if x in shaped)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = graph.call_function(target, args, kwargs)
        new.meta["val"] = target(*map_arg(args, _value), **map_arg(kwargs, _value))
        return new

    def moulded(x: fx.Node) -> fx.Node:
        if x in shaped and _sizes(shaped[x]) == shape:
            return shaped[x]
        return call(aten.view.default, x, [-1, *shape]) if _value(x).dim() else x

    with graph.inserting_before(node):
        result = call(node.target, *map_arg(node.args, moulded), **map_arg(node.kwargs, moulded))
        flat = call(aten.view.default, result, [-1, *_sizes(node)])
    shaped[flat] = result
    node.replace_all_uses_with(flat)


def _is_outer(node: Any) -> bool:
    """Whether it is the product of a column and a row, for each row of a batch."""
    return node.target is aten.bmm.default and _sizes(node.args[0])[1] == 1 and _is_static(node)


def _is_static(node: fx.Node) -> bool:
    """Whether all its sizes but the first are plain numbers."""
    return all(isinstance(n, int) for n in _sizes(node))


def _is_column(node: fx.Node, shaped: Shaped) -> bool:
    """Whether it puts flattened products of one shape on one another."""
    if node.target is not aten.cat.default or node.args[1:] not in ((), (0,)):
        return False
    parts = node.all_input_nodes
    return all(x in shaped and _sizes(shaped[x]) == _sizes(shaped[parts[0]]) for x in parts)


def _is_elementwise(node: fx.Node, shaped: Shaped) -> bool:
    """Whether it is made, element by element, of flattened products, contiguous values of their shape, and numbers."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.pointwise not in node.target.tags:
        return False
    if shaped.keys().isdisjoint(node.all_input_nodes):
        return False
    inputs = [_value(x) for x in node.all_input_nodes]
    return all(isinstance(x, Tensor) and (x.dim() == 0 or _alike(x, _value(node))) for x in inputs)


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.is_contiguous()


def _sizes(node: fx.Node) -> list[Any]:
    """All but the first."""
    return list(_value(node).shape[1:])


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
