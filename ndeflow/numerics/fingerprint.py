"""What a module's traced graph has baked in: its parts, their modes and their plain attributes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

Fingerprint = dict[tuple[int, str], Hashable]

_INTERNAL = frozenset(nn.Module().__dict__)  # hooks, parameters, buffers, submodules: seen by other means


def fingerprint(modules: Iterable[nn.Module]) -> Fingerprint:
    """(identity of a part, attribute) -> value, for all parts of the modules.

    A change of mode, of a number, a string or a container of them, of a submodule, of a parameter's or buffer's dtype,
    device or need of gradients changes it; a change of a parameter's values does not. Tensors held as plain attributes
    are left out: a trace refuses them.
    """
    found: Fingerprint = {}
    for module in modules:
        for part in module.modules():
            me = id(part)
            found[me, "training"] = part.training
            for name, x in [*part._parameters.items(), *part._buffers.items()]:
                found[me, name] = None if x is None else (x.requires_grad, x.dtype, x.device, x.shape)
            for name, value in part.__dict__.items():
                if name not in _INTERNAL and (plain := _plain(value)) is not _OPAQUE:
                    found[me, name] = plain
    return found


_OPAQUE = object()
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


def _plain(value: Any) -> Any:
    """A hashable picture of plain values and of containers of them; `_OPAQUE` for everything else."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return (type(value), *map(_plain, value))
    if isinstance(value, dict):
        return (dict, *((k, _plain(v)) for k, v in value.items() if isinstance(k, Hashable)))
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value), *(_plain(getattr(value, f.name)) for f in fields(value)))
    return _OPAQUE
