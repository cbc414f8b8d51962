"""A function of tensors as one compiled graph: traced, audited, rewritten, lowered. The compiler is named only here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ndeflow.numerics.allocator import keep_freed_memory
from ndeflow.numerics.audit import Refusal, audit, explain, steady
from ndeflow.numerics.rewrites import Rewriter
from ndeflow.numerics.sums import join_sums

Function = Callable[..., Sequence[Tensor]]


@final
class Program:
    """A traced and lowered function of tensors.

    function: of flat tensors, returns a sequence of tensors; traced without gradients, so it may call
    `torch.autograd.grad` inside. inputs: examples of its arguments. batched: whether each has the batch as its first
    dimension: a batch of 2 rows or more is traced with any number of them, a single row as it is. rules: see
    `Rewriter`. What an argument is not used for is not passed on. Raises `Refusal` with the reason where the function
    cannot be traced, or would not mean the same when traced.
    """

    def __init__(
        self, function: Function, inputs: Sequence[Tensor], batched: Sequence[bool], rules: dict[Any, Any]
    ) -> None:
        self._env = ShapeEnv()
        graph = _trace(function, inputs, batched, rules, self._env)
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self._guards = self._env.produce_guards_expression(
            [node.meta["val"] for node in placeholders], ignore_static=False
        )
        self._used = [i for i, node in enumerate(placeholders) if node.users]
        for node in placeholders:
            if not node.users:
                graph.graph.erase_node(node)
        graph.recompile()
        self._run = lower(graph, [inputs[i] for i in self._used])
        self._fits: dict[int, bool] = {}

    def fits(self, rows: int, inputs: Sequence[Tensor]) -> bool:
        """Whether the traced graph is right for these arguments, with so many rows."""
        if rows not in self._fits:
            holds = self._guards is None or self._env.evaluate_guards_expression(self._guards, list(inputs))
            self._fits[rows] = bool(holds)
        return self._fits[rows]

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._run(*[inputs[i] for i in self._used])


def _trace(
    function: Function, inputs: Sequence[Tensor], batched: Sequence[bool], rules: dict[Any, Any], env: ShapeEnv
) -> fx.GraphModule:
    mode = FakeTensorMode(shape_env=env)
    fakes = [_fake(mode, x, rows) for x, rows in zip(inputs, batched, strict=True)]
    with mode, torch.no_grad(), _quiet():
        try:
            with steady():
                graph = make_fx(function, _DECOMPOSITIONS, tracing_mode="real")(*fakes)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal(explain(error)) from error
        audit(graph)
        join_sums(graph)
        return make_fx(Rewriter(graph, rules).run, tracing_mode="real")(*fakes)


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
    return mode.from_tensor(x.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a * b) if value != 1 else x + a * b


_DECOMPOSITIONS = {torch.ops.aten.addcmul.default: _addcmul}  # its own does not broadcast numbers


def lower(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph as machine code, for tensors like `inputs` with any number of rows."""
    import torch._inductor.config as config
    from torch._inductor import standalone_compile

    keep_freed_memory()
    with config.patch(cpp_wrapper=True):
        return standalone_compile(graph, list(inputs), dynamic_shapes="from_graph")


def kept_in() -> str:
    """The folder of compiled code: TORCHINDUCTOR_CACHE_DIR, by default a temporary one."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()
