"""A function of tensors as one compiled graph: traced, audited, rewritten, lowered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
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
from ndeflow.numerics.partition import cut
from ndeflow.numerics.rewrites import Rewriter, Rules
from ndeflow.numerics.sums import join_sums

Function = Callable[..., Sequence[Tensor]]


@final
class Program:
    """A function of flat tensors as machine code.

    rules: see `Rewriter`; the other arguments, and `Refusal`: see `Traced`.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], batched: Sequence[bool], rules: Rules) -> None:
        traced = Traced(function, inputs, batched)
        graph = traced.rewritten(traced.graph, rules)
        self._guards = traced.guards(len(inputs))
        self._code = Code(graph)

    @property
    def used(self) -> list[int]:
        """The places of the arguments that it reads."""
        return self._code.used

    def fits(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        """Whether it is right for these arguments, with so many rows."""
        return self._guards.hold(rows, inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._code(inputs)


@final
class Halves:
    """A function of flat tensors in two halves: `front` takes the arguments that are known first, `rest` all of them.

    early: how many arguments are known first. groups: how many of the function's results belong together: the first
    group is what `front` gives, beside what it keeps for the others, each of which has a half of its own. rules: of
    both halves. `Refusal`: see `Traced`.
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
        self._first, self._rules = groups[0], rules
        parts = cut(self._traced.graph, groups)
        front, self._graphs = self._traced.rewritten(parts.front, rules[0]), parts.rests
        self._guards = self._traced.guards(early)
        self._front = Code(front)
        self._rests: dict[int, Code] = {}

    @property
    def used(self) -> list[int]:
        """The places of the arguments that `front` reads."""
        return self._front.used

    def fits(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        """Whether it is right for these first arguments, with so many rows."""
        return self._guards.hold(rows, inputs)

    def front(self, inputs: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The first results, from the first arguments, and what is to be kept."""
        results = self._front(inputs)
        return results[: self._first], results[self._first :]

    def made(self, group: int) -> bool:
        """Whether the half of a later group, numbered from 0, was made."""
        return group in self._rests

    def make(self, group: int) -> None:
        """Make the half of a later group."""
        self._rests[group] = Code(self._traced.rewritten(self._graphs[group], self._rules[1]))

    def rest(self, group: int, inputs: Sequence[Tensor], kept: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results of a later group, from all arguments and what was kept."""
        return self._rests[group]([*inputs, *kept])


@final
class Code:
    """A graph as machine code. used: the places of the arguments that it reads; the others are not passed on."""

    def __init__(self, graph: fx.GraphModule) -> None:
        from ndeflow.numerics.lowering import lower  # imports the compiler

        placeholders = _placeholders(graph)
        self._read = [bool(node.users) for node in placeholders]
        self.used = [i for i, read in enumerate(self._read) if read]
        for node in placeholders:
            if not node.users:
                graph.graph.erase_node(node)
        graph.recompile()
        with _quiet():
            self._run = lower(graph)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._run([*compress(inputs, self._read)])


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

    def rewritten(self, graph: fx.GraphModule, rules: Rules) -> fx.GraphModule:
        """A graph of values of this one, by some rules (see `Rewriter`), in the operations that `lower` takes."""
        from ndeflow.numerics.lowering import decompositions  # imports the compiler

        fakes = [node.meta["val"] for node in _placeholders(graph)]
        with self._mode, torch.no_grad(), _quiet():
            return make_fx(Rewriter(graph, rules).run, decompositions(), tracing_mode="real")(*fakes)

    def guards(self, count: int) -> Guards:
        """Of what was traced and rewritten so far, for the first so many arguments."""
        return Guards(self._env, [node.meta["val"] for node in _placeholders(self.graph)[:count]])


def _attach(graph: fx.GraphModule) -> None:
    """Leave `detach` out: without gradients, values are what they were detached from."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


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
