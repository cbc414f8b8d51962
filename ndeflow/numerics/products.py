"""Large matrix products in single precision by oneDNN, which uses AVX-512 on the processors of any maker."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

WORTH = ((2**14, 32), (2**12, 256))
"""Entries of a matrix, and rows of another from which on their product gains more than the call costs."""

_SCHEMA = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor"

torch.library.define("ndeflow::_linear_pointwise", _SCHEMA)


@torch.library.impl("ndeflow::_linear_pointwise", "CPU")
def _linear(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, *options)


@torch.library.register_fake("ndeflow::_linear_pointwise")
def _shape_of_linear(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


# torch's own operation of that name is lowered for constant weights only: this one has another namespace, and in
# compiled code calls the same function.
SHIMS = {
    torch.ops.ndeflow._linear_pointwise.default: [
        "AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, "
        "const char*, const double**, int64_t, const char**, AtenTensorHandle*)"
    ]
}


@cache
def pays() -> bool:
    """Whether large products are faster by oneDNN on this machine: MKL keeps AVX-512 for Intel's processors."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def large(x: Tensor, weight: Tensor) -> Any:
    """x (M, K) @ weight (K, N) with M or K a number of rows, where there are many for so large a matrix.

    Otherwise NotImplemented. Another program is made for few rows.
    """
    sizes = (*x.shape, weight.shape[1])
    rows = [n for n in sizes if isinstance(n, torch.SymInt)]
    entries = math.prod(n for n in sizes if not isinstance(n, torch.SymInt))
    least = next((many for large, many in WORTH if entries >= large), None)
    if len(rows) != 1 or least is None or x.dtype != torch.float32 or x.device.type != "cpu" or not pays():
        return NotImplemented
    if rows[0] < least * _multiple(rows[0]):
        return NotImplemented
    return torch.ops.ndeflow._linear_pointwise(x, weight.t(), None, "none", [], "")


def _multiple(size: torch.SymInt) -> int:
    """How many batches on one another have so many rows: so that all products ask the same of a batch."""
    return int(size.node.expr.as_coeff_Mul()[0])
