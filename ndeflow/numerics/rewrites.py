"""Rewrites of a traced step that make it faster in single precision: rational tanh, matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ndeflow.numerics.products import laid, product
from ndeflow.numerics.rational import rational_tanh

aten = torch.ops.aten

Product = Callable[[Tensor, Tensor], Any]
Rules = dict[Any, Callable[..., Any]]
"""operation -> function of the same arguments, which returns NotImplemented to leave it as it is."""

SMALL = 4  # a matrix product with an inner or outer size up to this is written as fused multiplications
STAGES = 8  # so is one of fixed sizes with an inner size up to this: a weight's gradient of a step of a single row


def _tanh(x: Tensor) -> Any:
    return rational_tanh(x) if x.dtype == torch.float32 else NotImplemented


def _sigmoid(x: Tensor) -> Any:
    return 0.5 + 0.5 * rational_tanh(0.5 * x) if x.dtype == torch.float32 else NotImplemented


def _silu(x: Tensor) -> Any:
    return x * _sigmoid(x) if x.dtype == torch.float32 else NotImplemented


def _silu_backward(grad: Tensor, x: Tensor) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    gate = _sigmoid(x)
    return grad * gate * (1 + x * (1 - gate))


def _few_in(x: Tensor, weight: Tensor) -> Any:
    """x (rows, K) @ weight (K, N) for few K: of a batch with a matrix of fixed size, or of two such matrices."""
    if _dynamic(weight) or not 0 < weight.shape[0] <= (SMALL if _dynamic(x) else STAGES):
        return NotImplemented
    weight = laid(weight)
    terms = [x.narrow(1, k, 1) * weight[k] for k in range(weight.shape[0])]
    return sum(terms[1:], start=terms[0])


def _few(x: Tensor, weight: Tensor) -> Any:
    """The same for few K or N."""
    found = _few_in(x, weight)
    if found is not NotImplemented or not _of_rows(x, weight) or weight.shape[1] > SMALL:
        return found
    return torch.stack([(x * weight[:, n]).sum(dim=-1) for n in range(weight.shape[1])], dim=-1)


def _or_other(few: Product) -> Product:
    """A product that is one of few columns, or another."""

    def either(x: Tensor, weight: Tensor) -> Any:
        found = few(x, weight)
        return product(x, weight) if found is NotImplemented else found

    return either


def _of_rows(x: Tensor, weight: Tensor) -> bool:
    return not _dynamic(weight) and (_dynamic(x) or x.shape[0] == 1)


def _dynamic(x: Tensor) -> bool:
    return any(isinstance(n, torch.SymInt) for n in x.shape)


def _with_bias(times: Product) -> Callable[..., Any]:
    """The rule for `addmm`: bias apart, so that it is added in what follows, not copied for a product to be added to.

    As a subtraction, which Inductor does not turn back into what it was.
    """

    def addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        if alpha != 1 or beta != 1:
            return NotImplemented
        found = times(x, weight)
        return (x @ weight if found is NotImplemented else found) - (-bias)

    return addmm


def _over_rows(x: Tensor, dims: list[int], keepdim: bool = False, **more: Any) -> Any:
    """The sum of a matrix over its rows as a product with ones."""
    if x.dim() != 2 or dims != [0] or more or not x.is_floating_point():
        return NotImplemented
    if not _dynamic(x) and x.shape[0] <= STAGES:
        return NotImplemented
    total = x.new_ones(1, x.shape[0]) @ x
    return total if keepdim else total[0]


_FUNCTIONS = {
    aten.sum.dim_IntList: _over_rows,
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten.silu_backward.default: _silu_backward,
}


def rules(*, backward: bool = False) -> Rules:
    """What to rewrite, and how: of a backward pass, in which few columns gain nothing, or another."""
    either = _or_other(_few_in if backward else _few)
    return _FUNCTIONS | {aten.mm.default: either, aten.addmm.default: _with_bias(either)}


class Rewriter(fx.Interpreter):
    """Runs a graph with some of its operations replaced; traced, it is the rewritten graph."""

    def __init__(self, graph: fx.GraphModule, rules: Rules) -> None:
        super().__init__(graph)
        self.rules = rules

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self.rules.get(target)
        result = NotImplemented if rule is None else rule(*args, **kwargs)
        return super().call_function(target, args, kwargs) if result is NotImplemented else result
