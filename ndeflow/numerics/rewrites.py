"""Rewrites of a traced step that make it faster in single precision: rational tanh, small matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

SMALL = 4  # a matrix product with an inner or outer size up to this is written as fused multiplications

# Minimax rational approximation of tanh on [-7.9053, 7.9053], odd numerator and even denominator: what Eigen and XLA
# evaluate in single precision
BOUND = 7.90531110763549805
NUMERATOR = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
DENOMINATOR = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


def rational_tanh(x: Tensor) -> Tensor:
    """tanh(x) = x P(x^2) / Q(x^2) with P of degree 6 and Q of degree 3, clamped: absolute error 3e-7."""
    x = x.clamp(-BOUND, BOUND)
    square = x * x
    return x * _horner(NUMERATOR, square) / _horner(DENOMINATOR, square)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        total = total * x + c
    return total


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


def _mm(x: Tensor, weight: Tensor) -> Any:
    """x (rows, K) @ weight (K, N) for few K or N, where the number of rows alone is dynamic."""
    if not isinstance(x.shape[0], torch.SymInt) or any(isinstance(n, torch.SymInt) for n in weight.shape):
        return NotImplemented
    inner, outer = weight.shape
    if inner <= SMALL:
        terms = [x[:, k : k + 1] * weight[k] for k in range(inner)]
        return sum(terms[1:], start=terms[0])
    if outer <= SMALL:
        return torch.stack([(x * weight[:, n]).sum(dim=-1) for n in range(outer)], dim=-1)
    return NotImplemented


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Bias apart, so that it is added in what follows, rather than copied for the product to be added to."""
    if alpha != 1 or beta != 1:
        return NotImplemented
    product = _mm(x, weight)
    return (x @ weight if product is NotImplemented else product) + bias


FUNCTIONS = {
    aten.tanh.default: _tanh,
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten.silu_backward.default: _silu_backward,
}
PRODUCTS = {aten.mm.default: _mm, aten.addmm.default: _addmm}


class Rewriter(fx.Interpreter):
    """Runs a graph with some of its operations replaced; traced, it is the rewritten graph.

    rules: operation -> function of the same arguments, which returns NotImplemented to leave it as it is.
    """

    def __init__(self, graph: fx.GraphModule, rules: dict[Any, Callable[..., Any]]) -> None:
        super().__init__(graph)
        self.rules = rules

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self.rules.get(target)
        result = NotImplemented if rule is None else rule(*args, **kwargs)
        return super().call_function(target, args, kwargs) if result is NotImplemented else result
