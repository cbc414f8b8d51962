"""Sums over the stages of a step as one operation: the gradients of weights by a single long matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import map_arg

aten = torch.ops.aten

_JOINED = "joined"  # marks what was made here
_VIEWS = (aten.t.default, aten.view.default, aten.detach.default)


class Term(NamedTuple):
    """An operation over rows, and the views of its result that are added up: (target, further arguments) each."""

    operation: fx.Node
    views: tuple[Any, ...]

    @property
    def key(self) -> Any:
        """What terms must share to be made one."""
        rest = () if self.operation.target is aten.mm.default else self.operation.args[1:]
        return self.operation.target, repr(rest), repr(self.views)


def join_sums(graph: fx.GraphModule) -> None:
    """Rewrite sums of products and of sums over rows, sum_i A_i B_i as [A_1 A_2 ...] [B_1; B_2; ...], in place.

    The backward pass of a Runge-Kutta step adds up as many small products for each weight as the step has stages; one
    long product costs a fraction of their calls. To be called where the graph was traced: new values are traced too.
    """
    new = _Joiner(graph.graph)
    for root in list(graph.graph.nodes):
        if _adds(root) and not (len(root.users) == 1 and _adds(next(iter(root.users)))):
            _join(new, root)
    graph.graph.eliminate_dead_code()
    graph.recompile()


class _Joiner:
    """Puts operations into a graph; columns: those that were put on one another, made once."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.columns: dict[tuple[fx.Node, ...], fx.Node] = {}

    def call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta["val"] = target(*map_arg(args, lambda x: x.meta["val"]))
        node.meta[_JOINED] = True
        return node

    def column(self, parts: Sequence[fx.Node]) -> fx.Node:
        """[A_1; A_2; ...]."""
        key = tuple(parts)
        if key not in self.columns:
            self.columns[key] = self.call(aten.cat.default, list(parts), 0)
        return self.columns[key]


def _join(new: _Joiner, root: fx.Node) -> None:
    groups: dict[Any, list[Term]] = {}
    rest = []
    for leaf in _leaves(root):
        term = _term(leaf)
        if term is None:
            rest.append(leaf)
        else:
            groups.setdefault(term.key, []).append(term)
    if all(len(terms) == 1 for terms in groups.values()):
        return
    with new.graph.inserting_before(root):
        total, *others = [*rest, *(_joined(new, terms) for terms in groups.values())]
        for part in others:
            total = new.call(aten.add.Tensor, total, part)
    root.replace_all_uses_with(total)


def _joined(new: _Joiner, terms: list[Term]) -> fx.Node:
    first, operations = terms[0].operation, [term.operation for term in terms]
    columns: list[list[Any]] = [[operation.args[i] for operation in operations] for i in range(len(first.args))]
    if first.target is aten.mm.default:
        arguments = (_row(new, columns[0]), new.column(columns[1]))
    else:
        arguments = (new.column(columns[0]), *first.args[1:])
    node = new.call(first.target, *arguments)
    for view, further in terms[0].views:
        node = new.call(view, node, *further)
    return node


def _row(new: _Joiner, parts: list[Any]) -> fx.Node:
    """[A_1 A_2 ...], as the transpose of a column where all are transposes."""
    if all(part.target is aten.t.default for part in parts):
        return new.call(aten.t.default, new.column([part.args[0] for part in parts]))
    return new.call(aten.cat.default, parts, 1)


def _adds(node: fx.Node) -> bool:
    """Whether it is a plain sum of two tensors of one shape."""
    if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs:
        return False
    if _JOINED in node.meta:
        return False
    return all(isinstance(x, fx.Node) and _JOINED not in x.meta and _shape(x) == _shape(node) for x in node.args)


def _leaves(node: fx.Node) -> Iterator[fx.Node]:
    """What a tree of additions adds up, in their order."""
    for x in node.args:
        assert isinstance(x, fx.Node)
        if _adds(x) and len(x.users) == 1:
            yield from _leaves(x)
        else:
            yield x


def _term(leaf: fx.Node) -> Term | None:
    """A leaf as an operation over rows, seen through views; None where it is something else."""
    views = []
    while leaf.target in _VIEWS and len(leaf.users) == 1:
        views.append((leaf.target, leaf.args[1:]))
        source = leaf.args[0]
        assert isinstance(source, fx.Node)
        leaf = source
    return Term(leaf, tuple(reversed(views))) if len(leaf.users) == 1 and _over_rows(leaf) else None


def _over_rows(node: fx.Node) -> bool:
    """Whether it sums over the rows of a batch: a product or a sum whose result has fixed sizes."""
    if _JOINED in node.meta:
        return False
    if node.target is aten.mm.default:
        rows = node.args[1]
    elif node.target is aten.sum.dim_IntList and node.args[1] == [0]:
        rows = node.args[0]
    else:
        return False
    assert isinstance(rows, fx.Node)
    return not _dynamic(node) and (_dynamic(rows) or _shape(rows)[0] == 1)


def _dynamic(node: fx.Node) -> bool:
    return any(isinstance(n, torch.SymInt) for n in _shape(node))


def _shape(node: fx.Node) -> Any:
    return node.meta["val"].shape
