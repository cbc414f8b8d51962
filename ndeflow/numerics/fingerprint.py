"""What a module's traced graph has baked in, and which tensors it reads: found in one walk through its parts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Fingerprint = dict[tuple[int, str], Hashable]

_INTERNAL = frozenset(nn.Module().__dict__)  # parameters, buffers, submodules, hooks: seen by other means


def survey(modules: Iterable[nn.Module]) -> tuple[list[Tensor], Fingerprint]:
    """The tensors of modules and their fingerprint.

    tensors: parameters, then buffers, each once, in the order of `nn.ModuleList(modules)`. fingerprint: (identity of a
    part, attribute) -> value, for all parts: it changes with a mode, a number, a string or a container of them, with a
    submodule, and with a parameter's or buffer's shape, strides, dtype, device or need of gradients, but not with their
    values. Tensors held as plain attributes are left out: a trace refuses them.
    """
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    found: Fingerprint = {}
    seen: set[int] = set()
    stack = list(modules)[::-1]
    while stack:
        part = stack.pop()
        me, attributes = id(part), part.__dict__
        if me in seen:
            continue
        seen.add(me)
        found[me, "training"] = part.training
        for kind, tensors in ((parameters, part._parameters), (buffers, part._buffers)):
            for name, x in tensors.items():
                if x is not None:
                    kind[id(x)] = x
                    found[me, name] = (x.requires_grad, x.dtype, x.device, x.shape, x.stride())
        for name, value in attributes.items():
            if name not in _INTERNAL and (plain := _plain(value)) is not _OPAQUE:
                found[me, name] = plain
        stack += [child for child in reversed(part._modules.values()) if child is not None]
    return [*parameters.values(), *(x for i, x in buffers.items() if i not in parameters)], found


_OPAQUE = object()
_SCALARS = frozenset((int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size))


def _plain(value: Any) -> Any:
    """A hashable picture of plain values and of containers of them; `_OPAQUE` for everything else."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list or kind is tuple:
        return (kind, *map(_plain, value))
    if kind is dict:
        return (kind, *((k, _plain(v)) for k, v in value.items()))
    if is_dataclass(value) and not isinstance(value, type):
        return (kind, *(_plain(getattr(value, f.name)) for f in fields(value)))
    return _OPAQUE
