"""A function of tensors as one compiled graph: traced, audited, rewritten, lowered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ndeflow.numerics.audit import Refusal, audit, explain, steady, writes
from ndeflow.numerics.inplace import write_anew
from ndeflow.numerics.outer import flatten_late
from ndeflow.numerics.packing import Line
from ndeflow.numerics.partition import cut
from ndeflow.numerics.rewrites import Rewriter, Rules
from ndeflow.numerics.sums import join_sums

Function = Callable[..., Sequence[Tensor]]


@final
class Program:
    """A function of flat tensors as machine code. run: takes them in a list.

    rules: see `Rewriter`; the other arguments, and `Refusal`: see `Traced`.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], batched: Sequence[bool], rules: Rules) -> None:
        traced = Traced(function, inputs, batched)
        graph = traced.rewritten(traced.graph, rules)
        self._guards = traced.guards(len(inputs))
        self._code = Code(graph)
        self.run = self._code.run

    @property
    def used(self) -> list[int]:
        """The places of the arguments that it reads."""
        return self._code.used

    def fits(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        """Whether it is right for these arguments, with so many rows."""
        return self._guards.hold(rows, inputs)


@final
class Halves:
    """A function of flat tensors in two halves: `front` takes the arguments that are known first.

    early: how many arguments are known first. groups: how many of the function's results belong together: `front` gives
    the first group, `first` of them, then what it keeps for the others. rests: the half of each later group, once it
    was made: it takes all arguments, then what was kept. rules: of both halves. `Refusal`: see `Traced`.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        batched: Sequence[bool],
        early: int,
        groups: Sequence[int],
        rules: tuple[Rules, Rules],
    ) -> None:
        self._traced = Traced(function, inputs, batched)
        self.first, self._rules = groups[0], rules
        parts = cut(self._traced.graph, groups)
        self._graphs, self._count = parts.rests, len(inputs)
        self._rows = next((i for i, rows in enumerate(batched) if rows), None)
        rows = None if self._rows is None else _placeholders(parts.front)[self._rows].meta["val"].shape[0]
        kept = _results(parts.front)[self.first :]
        large = [i for i, node in enumerate(kept) if node.target is torch.ops.aten.cat.default and rows != 1]  # columns
        self._line = Line.of([node.meta["val"] for node in kept], large, rows)
        front = self._traced.rewritten(parts.front, rules[0], after=self._packed)
        self._kept = [node.meta["val"] for node in _results(front)[self.first :]]
        self._guards = self._traced.guards(early)
        self.front = Code(front)
        self.rests: dict[int, Code] = {}

    @property
    def used(self) -> list[int]:
        """The places of the arguments that `front` reads."""
        return self.front.used

    def fits(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        """Whether it is right for these first arguments, with so many rows."""
        return self._guards.hold(rows, inputs)

    def make(self, group: int) -> None:
        """Make the half of a later group, numbered from 0."""
        graph = self._graphs[group]
        fakes = [node.meta["val"] for node in _placeholders(graph)[: self._count]] + self._kept
        self.rests[group] = Code(self._traced.rewritten(graph, self._rules[1], fakes, before=self._unpacked))

    def _packed(self, results: Sequence[Tensor]) -> list[Tensor]:
        return [*results[: self.first], *self._line.pack(results[self.first :])]

    def _unpacked(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        rows = None if self._rows is None else inputs[self._rows].shape[0]
        return [*inputs[: self._count], *self._line.unpack(inputs[self._count :], rows)]


@final
class Code:
    """A graph as machine code. used: the places of the arguments that it reads. run: takes all in a list."""

    def __init__(self, graph: fx.GraphModule) -> None:
        from ndeflow.numerics.lowering import lower, picking  # imports the compiler

        placeholders = _placeholders(graph)
        self.used = [i for i, node in enumerate(placeholders) if node.users]
        for node in placeholders:
            if not node.users:
                graph.graph.erase_node(node)
        graph.recompile()
        with _quiet():
            self.run = picking(lower(graph), self.used)


@final
class Guards:
    """For which numbers of rows a traced graph is right. arguments: its own."""

    def __init__(self, env: ShapeEnv, arguments: Sequence[Any]) -> None:
        self._env, self._known = env, dict[int, bool]()
        self._expression = env.produce_guards_expression(list(arguments), ignore_static=False)

    def hold(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        if rows not in self._known:
            given = [_at_origin(x) for x in inputs]
            holds = self._expression is None or self._env.evaluate_guards_expression(self._expression, given)
            self._known[rows] = bool(holds)
        return self._known[rows]


@final
class Traced:
    """A function of flat tensors as a graph, audited.

    function: returns a sequence of tensors; traced without gradients, so it may call `torch.autograd.grad` inside.
    inputs: examples of its arguments. batched: whether each has the batch as its first dimension: a batch of 2 rows or
    more is traced with any number of them, a single row as it is. Raises `Refusal` with the reason where the function
    cannot be traced, or would not mean the same when traced.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], batched: Sequence[bool]) -> None:
        self._env = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._env)
        fakes = [_fake(self._mode, x, rows) for x, rows in zip(inputs, batched, strict=True)]
        with self._mode, torch.no_grad(), _quiet():
            try:
                with steady():
                    self.graph = make_fx(function, _DECOMPOSITIONS, tracing_mode="real")(*fakes)
            except Refusal:
                raise
            except Exception as error:
                raise Refusal(explain(error)) from error
            audit(self.graph)
            write_anew(self.graph.graph)
            if any(map(writes, self.graph.graph.nodes)):
                self.graph = make_fx(functionalize(self.graph), tracing_mode="real")(*fakes)
            _attach(self.graph)
            join_sums(self.graph)
            flatten_late(self.graph)

    def rewritten(
        self,
        graph: fx.GraphModule,
        rules: Rules,
        inputs: Sequence[Tensor] | None = None,
        before: Callable[[Sequence[Tensor]], list[Tensor]] = list,
        after: Callable[[Sequence[Tensor]], list[Tensor]] = list,
    ) -> fx.GraphModule:
        """A graph of values of this one, by some rules (see `Rewriter`), in the operations that `lower` takes.

        inputs: its arguments, where they are others. before: makes the graph's own of them. after: makes what is given
        of its results.
        """
        from ndeflow.numerics.lowering import decompositions  # imports the compiler

        fakes = [node.meta["val"] for node in _placeholders(graph)] if inputs is None else inputs

        def whole(*arguments: Tensor) -> list[Tensor]:
            return after(Rewriter(graph, rules).run(*before(arguments)))

        with self._mode, torch.no_grad(), _quiet():
            return make_fx(whole, decompositions(), tracing_mode="real")(*fakes)

    def guards(self, count: int) -> Guards:
        """Of what was traced and rewritten so far, for the first so many arguments."""
        return Guards(self._env, [node.meta["val"] for node in _placeholders(self.graph)[:count]])


def _attach(graph: fx.GraphModule) -> None:
    """Leave `detach` out: without gradients, values are what they were detached from."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _results(graph: fx.GraphModule) -> list[fx.Node]:
    results: Any = graph.graph.output_node().args[0]
    return list(results)


def _placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch does not log why it could not trace an operation: the refusal says so."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _fake(mode: FakeTensorMode, x: Tensor, batched: bool) -> Tensor:
    kinds = [DimDynamic.STATIC] * x.dim()
    if batched and x.shape[0] > 1:
        kinds[0] = DimDynamic.DUCK
    context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
    return mode.from_tensor(_at_origin(x.detach()), symbolic_context=context)


def _at_origin(x: Tensor) -> Tensor:
    """The same values from the first place of a storage on: where they lie is not to be guarded."""
    return x.clone() if x.storage_offset() else x


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a * b) if value != 1 else x + a * b


def _zeros(size: Sequence[int], *, dtype: torch.dtype, device: torch.device, **_: Any) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=device)


_DECOMPOSITIONS = {
    torch.ops.aten.addcmul.default: _addcmul,  # its own does not broadcast numbers
    torch.ops.aten._efficientzerotensor.default: _zeros,  # of forward mode: it has no memory to compute with
}
