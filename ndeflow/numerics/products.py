"""Large matrix products in single precision by oneDNN, which uses AVX-512 on the processors of any maker."""

from __future__ import annotations

import math
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


def large_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K) @ weight (K, N) by oneDNN."""
    return torch.ops.ndeflow._linear_pointwise(x, weight.t(), None, "none", [], "")


def worth(x: Tensor, weight: Tensor) -> bool:
    """Whether `large_product` is faster: of x (M, K) and weight (K, N) one size is that of the batch, or many times it.

    The answer depends on the number of rows: a graph in which it was asked is right for as many or for as few.
    """
    sizes = (*x.shape, weight.shape[1])
    rows = [n for n in sizes if isinstance(n, torch.SymInt)]
    entries = math.prod(n for n in sizes if not isinstance(n, torch.SymInt))
    least = next((many for large, many in WORTH if entries >= large), None)
    if len(rows) != 1 or least is None or x.dtype != torch.float32 or x.device.type != "cpu" or not pays():
        return False
    return bool(rows[0] >= least * _multiple(rows[0]))


def pays() -> bool:
    """Whether this machine has AVX-512, and a maker for whose processors torch's usual products (MKL) do without."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return "Intel" not in torch.cpu.get_capabilities()["cpu_name"]


def _multiple(size: torch.SymInt) -> int:
    """How many batches on one another have so many rows: so that all products ask the same of a batch."""
    return int(size.node.expr.as_coeff_Mul()[0])
