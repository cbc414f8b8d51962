"""tanh in single precision as a rational function: one operation of a graph, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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

torch.library.define("ndeflow::rational_tanh", "(Tensor x) -> Tensor")


@torch.library.impl("ndeflow::rational_tanh", "CompositeExplicitAutograd")
def _evaluated(x: Tensor) -> Tensor:
    return quotient(x.clamp(-BOUND, BOUND), float)


@torch.library.register_fake("ndeflow::rational_tanh")
def _shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


TANH = torch.ops.ndeflow.rational_tanh.default


def rational_tanh(x: Tensor) -> Tensor:
    """tanh(x) = x P(x^2) / Q(x^2) with P of degree 6 and Q of degree 3, clamped: absolute error 3e-7."""
    return TANH(x)


def quotient(x: Any, number: Callable[[float], Any]) -> Any:
    """The same of x within its bounds, of whatever can be added and multiplied. number: makes one of it."""
    square = x * x
    return x * _horner([*map(number, NUMERATOR)], square) / _horner([*map(number, DENOMINATOR)], square)


def _horner(coefficients: Sequence[Any], x: Any) -> Any:
    total = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        total = total * x + c
    return total
