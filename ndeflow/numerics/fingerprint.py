"""What a module's traced graph has baked in, and which tensors it reads: found in one walk through its parts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Self, final
from weakref import ref

import numpy
from torch import Tensor, nn

from ndeflow.numerics.outside import SCALARS, Variable, outside, watched

Attribute = tuple[int, str]
Fingerprint = dict[Attribute, Any]

DEPTH = 4  # how far plain objects are looked into

INTERNAL = frozenset(nn.Module().__dict__) - {"training"}  # parameters, buffers, submodules, hooks: seen otherwise


@final
@dataclass(frozen=True)
class Survey:
    """tensors: parameters, then buffers, each once, in the order of `nn.ModuleList(modules)`.

    structure: (identity of a part, name) -> its class and the hooks of its calls; of its parameters and buffers which
    of all they are, shape, strides, dtype, device and need of gradients. attributes: (identity of a part, attribute)
    -> a picture of its value. These stay the same when values of tensors change. variables: those that functions among
    the attributes read, see `outside`; what they are is among the attributes too.
    """

    tensors: list[Tensor]
    structure: Fingerprint
    attributes: Fingerprint
    variables: dict[Attribute, Variable] = field(default_factory=dict)

    @cached_property
    def detached(self) -> list[Tensor]:
        """The tensors off the graph."""
        return [x.detach() for x in self.tensors]

    @cached_property
    def trained(self) -> list[Tensor]:
        """The tensors that need gradients."""
        return [x for x in self.tensors if x.requires_grad]

    @cached_property
    def untrained(self) -> list[tuple[int, Tensor]]:
        """The others, with their places."""
        return [(i, x) for i, x in enumerate(self.tensors) if not x.requires_grad]


def survey(modules: Iterable[nn.Module], among: Container[Attribute] | None = None) -> Survey:
    """What there is to know of modules and all their parts; among: of these attributes alone, None: of all."""
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    found, order, functions = Survey([], {}, {}), dict[int, int](), list[Any]()
    seen: set[int] = set()
    stack = list(modules)[::-1]
    while stack:
        part = stack.pop()
        me = id(part)
        if me in seen:
            continue
        seen.add(me)
        found.structure[me, ""] = (type(part), *hooks(part))
        for kind, tensors in ((parameters, part._parameters), (buffers, part._buffers)):
            for name, x in tensors.items():
                if x is not None:
                    kind[id(x)] = x
                    number = order.setdefault(id(x), len(order))
                    found.structure[me, name] = (number, x.requires_grad, x.dtype, x.device, x.shape, x.stride())
        for name, value in (*_inherited(part), *part.__dict__.items()):
            if name not in INTERNAL and (among is None or (me, name) in among):
                found.attributes[me, name] = picture(value)
                functions.append(value)
        stack += [child for child in reversed(part._modules.values()) if child is not None]
    found.variables.update(outside(functions))
    found.attributes.update({key: watched(variable.value()) for key, variable in found.variables.items()})
    found.tensors.extend([*parameters.values(), *(x for i, x in buffers.items() if i not in parameters)])
    return found


def classes(module: nn.Module) -> list[type]:
    """Of a module those that its user wrote: what is read of torch's own is taken to stay."""
    kinds = type(module).__mro__
    return [kind for kind in kinds[: kinds.index(nn.Module)] if not kind.__module__.startswith("torch.")]


def _inherited(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that a module has from its classes, methods among them; of one name, that which it has comes last."""
    return ((name, value) for kind in reversed(classes(module)) for name, value in vars(kind).items())


def hooks(part: nn.Module) -> tuple[int, ...]:
    """The numbers of the hooks on a module's calls and on the gradients of its calls."""
    kinds = part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks
    return tuple(number for kind in kinds for number in kind)


@final
@dataclass
class Versions:
    """The versions of a field's attributes, by what its traced graphs have read of them.

    reads: attributes that were read in traces. volatile: those that the field writes itself, such as counters, which
    are left out. known: each version's fingerprint. last: the survey that was last asked for, and its number.
    """

    reads: set[Attribute] = field(default_factory=set)
    volatile: set[Attribute] = field(default_factory=set)
    known: list[Fingerprint] = field(default_factory=list)
    last: tuple[Survey, int] | None = None

    def number(self, now: Survey) -> int:
        """The number of this version, new or known."""
        if self.last is None or self.last[0] is not now:
            mine = self._of(now)
            if mine not in self.known:
                self.known.append(mine)
            self.last = now, self.known.index(mine)
        return self.last[1]

    def settle(self, number: int, before: Survey, after: Survey) -> None:
        """A version was traced in between: from now on it is known by what was read, less what was written."""
        self.volatile |= {k for k, v in after.attributes.items() if before.attributes.get(k) != v}
        self.known = [{k: v for k, v in version.items() if k not in self.volatile} for version in self.known]
        self.known[number], self.last = self._of(after), None

    def changing(self) -> str:
        """The names of what differs between the first version and the last."""
        first, last = self.known[0], self.known[-1]
        return ", ".join(sorted({name for (me, name), v in last.items() if name and first.get((me, name)) != v}))

    def _of(self, now: Survey) -> Fingerprint:
        asked = self.reads | now.variables.keys()
        read = {k: v for k, v in now.attributes.items() if k in asked and k not in self.volatile}
        return now.structure | read


_READING = threading.Lock()


@contextmanager
def noted(reads: set[Attribute]) -> Iterator[None]:
    """Inside, every attribute that is read of any module is added to `reads`."""

    def read(self: nn.Module, name: str) -> Any:
        reads.add((id(self), name))
        return object.__getattribute__(self, name)

    with _READING:
        nn.Module.__getattribute__ = read
        try:
            yield
        finally:
            del nn.Module.__getattribute__


@final
@dataclass(frozen=True)
class Same:
    """Equal to a picture of the very same object only, which is not kept alive where that can be helped."""

    value: Any

    @classmethod
    def of(cls, value: Any) -> Self:
        try:
            return cls(ref(value))  # of one object it is always the same one
        except TypeError:
            return cls(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


CODE = (FunctionType, property, classmethod, staticmethod)


def picture(value: Any) -> Any:
    """What compares equal as long as a value, and all that it is made of, is the same; values of tensors aside."""
    return _picture(value, DEPTH, frozenset())


def _picture(value: Any, depth: int, around: frozenset[int]) -> Any:
    """`picture`; around: the identities of what a value is part of."""
    kind = type(value)
    if isinstance(value, SCALARS):
        return kind, value
    if isinstance(value, Tensor):
        return kind
    if isinstance(value, numpy.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if depth == 0 or isinstance(value, (type, ModuleType, *CODE)) or id(value) in around:
        return Same.of(value)
    of = partial(_picture, depth=depth - 1, around=around | {id(value)})
    if isinstance(value, MethodType):
        return kind, Same.of(value.__self__), Same.of(value.__func__)
    if isinstance(value, partial):
        return kind, of(value.func), of(value.args), of(value.keywords)
    if isinstance(value, (list, tuple, deque)):
        return kind, *map(of, value)
    if isinstance(value, dict):
        return kind, *((k, of(x)) for k, x in value.items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(value)
    if is_dataclass(value):
        return kind, *(of(getattr(value, f.name)) for f in fields(value))
    return Same.of(value), *((name, of(x)) for name, x in _state(value).items())


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object by their names, those in slots included."""
    state: Any = object.__getstate__(value)
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}
