"""What functions read that is neither an argument nor an attribute: global variables, those of functions around them.

Libraries are taken to stay: torch, Python's own and this one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dis import get_instructions
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, final
from weakref import ReferenceType, ref

from torch import nn

GONE = object()
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "ndeflow"}
_CALLED = frozenset({"__init__", "__call__"})  # whatever their names


@final
class Around(NamedTuple):
    """The variables that a function has of those around it; it is not kept alive, for it may keep its owner."""

    function: ReferenceType[FunctionType]

    def get(self, name: str, otherwise: Any) -> Any:
        """The value of one of them; `otherwise` where there is none, or no function any more."""
        function = self.function()
        if function is None:
            return otherwise
        try:
            return _cells(function)[name].cell_contents
        except ValueError:  # it was deleted
            return otherwise


Place = tuple[Mapping[str, Any] | Around, str]


def outside(functions: Iterable[Any]) -> dict[tuple[int, str], Place]:
    """Where functions, and those that they reach by name, read variables, by an identity and a name.

    functions: also methods, properties and objects that are called; what is none is passed over. A place is a namespace
    and a name in it. Of modules and classes that are reached also the attributes that may be meant.
    """
    found, seen, ahead = dict[tuple[int, str], Place](), set[int](), list(functions)
    while ahead:
        function = _function(ahead.pop())
        if function is None or id(function) in seen or _library(function.__module__):
            continue
        seen.add(id(function))
        for key, place in _read(function):
            if key not in found:
                found[key] = place
                ahead.append(place[0].get(place[1], None))
    return found


def _function(value: Any) -> FunctionType | None:
    """The function that is called when a value is."""
    while not isinstance(value, FunctionType):
        if isinstance(value, (staticmethod, classmethod, MethodType)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, partial):
            value = value.func
        elif isinstance(value, (type, nn.Module)):  # the ones are made, the others looked at by themselves
            return None
        else:
            call: Any = getattr(type(value), "__call__", None)  # noqa: B004
            return call if isinstance(call, FunctionType) else None
    return value


def _read(function: FunctionType) -> Iterator[tuple[tuple[int, str], Place]]:
    """The variables that a function reads itself."""
    named, attributes = _names(function.__code__)
    space, around, cells = function.__globals__, Around(ref(function)), _cells(function)
    ahead: list[tuple[int, Any, str]] = [(id(space), space, name) for name in named if name in space]
    ahead += [(id(cell), around, name) for name, cell in cells.items()]
    seen: set[int] = set()
    while ahead:
        me, space, name = ahead.pop()
        value = space.get(name, None)
        if isinstance(value, (ModuleType, type)) and id(value) not in seen and not _library(_origin(value)):
            seen.add(id(value))
            inside = vars(value)
            ahead += [(id(value), inside, x) for x in sorted(attributes | _CALLED) if x in inside]
        if not isinstance(value, (ModuleType, nn.Module)):  # if another module has tensors they are refused
            yield (me, name), (space, name)


def _origin(value: ModuleType | type) -> str:
    """The name of the module that is or has it."""
    return value.__name__ if isinstance(value, ModuleType) else value.__module__


def _cells(function: FunctionType) -> dict[str, CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The global variables that code reads, and the attributes."""
    named = {x.argval for x in get_instructions(code) if x.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = set(code.co_names) - named
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more, others = _names(inner)
            named, attributes = named | more, attributes | others
    return frozenset(named), frozenset(attributes)


def _library(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _LIBRARIES


def value_at(place: Place) -> Any:
    """What is there now; `GONE`: nothing."""
    get: Callable[..., Any] = place[0].get
    return get(place[1], GONE)
