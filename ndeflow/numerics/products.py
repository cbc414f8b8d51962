"""Large matrix products in single precision by oneDNN, which uses AVX-512 on the processors of any maker."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

LARGE, MANY = 2**14, 32  # entries and rows of matrices from which on their product gains more than the call costs

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
    """x (M, K) @ weight (K, N) for many rows M and a large weight, or over a dynamic K; otherwise NotImplemented.

    Where M is dynamic, it depends on the number of rows: another program is made for few.
    """
    sizes = (*x.shape, weight.shape[1])
    fixed = [n for n in sizes if not isinstance(n, torch.SymInt)]
    if len(fixed) != 2 or fixed[0] * fixed[1] < LARGE or x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    if not pays() or (isinstance(sizes[0], torch.SymInt) and sizes[0] < MANY):
        return NotImplemented
    return torch.ops.ndeflow._linear_pointwise(x, weight.t(), None, "none", [], "")
