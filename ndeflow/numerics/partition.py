"""A traced function cut where its later arguments come in: what can be computed before, and the rest."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class Parts(NamedTuple):
    """front: arguments -> [*first results, *kept]. rests: of each later group, (*arguments, *kept) -> its results."""

    front: fx.GraphModule
    rests: list[fx.GraphModule]


def cut(graph: fx.GraphModule, groups: Sequence[int]) -> Parts:
    """Cut a graph by its results, so many in each group; those of the first need none of the later arguments.

    What the first group needs is computed in front. Each other group is handed what it reads of that (kept), but for
    views, sizes and lone numbers: these are made again from what they are made of. Columns of the former are put
    together in front, and it is these that are kept.
    """
    results: Any = graph.graph.output_node().args[0]
    first, later = results[: groups[0]], results[groups[0] :]
    ahead = _ancestors(first)
    _put_ahead(graph.graph, ahead)
    nodes = list(graph.graph.nodes)
    arguments = [x for x in nodes if x.op == "placeholder"]
    known = ahead - {x for x in ahead if x.op != "placeholder" and _again(x)}
    read = _ancestors(later, known) & known
    kept = [x for x in nodes if x in read and x.op != "placeholder"]
    rests = []
    for count in groups[1:]:
        rests.append(_extract(graph, [*arguments, *kept], later[:count]))
        later = later[count:]
    return Parts(_extract(graph, arguments, [*first, *kept]), rests)


def _ancestors(nodes: Sequence[fx.Node], stop: Container[fx.Node] = ()) -> set[fx.Node]:
    """All that nodes are made of, themselves included, back to those at which it stops."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [] if node in stop else node.all_input_nodes
    return found


def _put_ahead(graph: fx.Graph, ahead: set[fx.Node]) -> None:
    """Make columns of values that are known ahead as soon as they are; what comes later reads its pieces."""
    for column in list(graph.nodes):
        parts = _parts(column)
        if column in ahead or not parts or not ahead.issuperset(parts):
            continue
        max(parts).append(column)
        ahead.add(column)
        with graph.inserting_after(column):
            pieces = graph.call_function(aten.chunk.default, (column, len(parts)))
        for place, part in enumerate(parts):
            with graph.inserting_after(pieces):
                piece = graph.call_function(operator.getitem, (pieces, place))
            piece.meta.update(part.meta)
            part.replace_all_uses_with(piece, lambda user, made=piece: made < user and user not in ahead)


def _parts(node: fx.Node) -> list[fx.Node]:
    """What it puts on one another, if that is as many rows each; nothing if it does something else."""
    if node.target is not aten.cat.default or node.args[1:] not in ((), (0,)):
        return []
    parts: Any = node.args[0]
    return list(parts) if len({str(x.meta["val"].shape[0]) for x in parts}) == 1 else []


def _again(node: fx.Node) -> bool:
    """Whether it is cheaper made again than kept: a view, a size, a constant, a number made of numbers."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or _is_view(node):
        return True
    sources = [x.meta["val"] for x in node.all_input_nodes]
    return all(not isinstance(x, Tensor) or x.dim() == 0 for x in sources)


def _is_view(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (target.is_view or target is aten._unsafe_view.default)


def _extract(graph: fx.GraphModule, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.GraphModule:
    """The part of a graph from some of its nodes to others."""
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        copies[node] = new.placeholder(node.name)
        copies[node].meta.update(node.meta)
    needed = _ancestors(outputs, copies)
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output([copies[node] for node in outputs])
    return fx.GraphModule(graph, new)
