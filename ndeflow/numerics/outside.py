"""What functions read that is neither an argument nor an attribute: global variables, those of functions around them.

Followed by name: functions that these call, and of modules, classes, plain objects and dictionaries what they name of
them. Watched are numbers, strings, short lists of them, functions by their code, and modules without parameters.
Libraries are taken to stay: Python's own and all that is installed as they are. What is found in another way, as by
`getattr` or in a list of functions, is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dis import get_instructions
from functools import cache, lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, final
from weakref import ReferenceType, ref

import numpy
import torch
from torch import nn

_GONE = object()
SCALARS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
SHORT = 64  # a list of more values is not looked at
DEPTH = 3  # of a name and its attributes
_CALLED = ("__init__", "__call__", "forward", "backward")  # of a class, by other names


@final
class Variable(NamedTuple):
    """A name in a function and attributes of what it stands for; neither is kept alive."""

    function: ReferenceType[FunctionType]
    path: tuple[str, ...]

    def value(self) -> Any:
        """What is there now; `_GONE`: nothing."""
        function = self.function()
        if function is None:
            return _GONE
        found = _named(function, self.path[0])
        for name in self.path[1:]:
            found = _part(found, name)
        return found


def outside(functions: Iterable[Any]) -> dict[tuple[int, str], Variable]:
    """The variables that functions read, and those that these call, by the identity of a function and a name.

    functions: also methods, properties and objects that are called; what is none is passed over.
    """
    found, seen, ahead = dict[tuple[int, str], Variable](), set[int](), list(functions)
    while ahead:
        function = _function(ahead.pop())
        if function is None or id(function) in seen or _library(function.__module__):
            continue
        seen.add(id(function))
        for path, value in _read(function):
            ahead.append(value)
            if watched(value) is not None:
                found[id(function), ".".join(path)] = Variable(ref(function), path)
    return found


def watched(value: Any) -> Any:
    """What compares equal as long as a value is the same; None: it is not watched."""
    if isinstance(value, SCALARS):
        return type(value), value
    if isinstance(value, numpy.generic):
        return value.dtype, value.tobytes()
    if isinstance(value, (list, tuple)) and len(value) <= SHORT and all(isinstance(x, SCALARS) for x in value):
        return type(value), *value
    if isinstance(value, nn.Module):
        return ref(value)
    function = _function(value)
    return None if function is None else function.__code__


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


def _read(function: FunctionType) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The paths that a function names itself, and what is there."""
    names, parts = _names(function.__code__)
    ahead: list[tuple[tuple[str, ...], Any]] = [((name,), _named(function, name)) for name in sorted(names)]
    while ahead:
        path, value = ahead.pop()
        if value is _GONE:
            continue
        yield path, value
        if len(path) < DEPTH and _open(value):
            more = parts | set(_CALLED) if isinstance(value, type) else parts
            ahead += [((*path, name), _part(value, name)) for name in sorted(more)]


def _open(value: Any) -> bool:
    """Whether attributes of a value are looked at: of a module, a class or a plain object that is no library's."""
    if isinstance(value, (dict, SimpleNamespace)):
        return True
    if isinstance(value, ModuleType):
        return not _library(value.__name__)
    kind = value if isinstance(value, type) else type(value)
    return not isinstance(value, nn.Module) and not _library(kind.__module__)


def _named(function: FunctionType, name: str) -> Any:
    """What a name in a function stands for."""
    free = function.__code__.co_freevars
    if name not in free:
        return function.__globals__.get(name, _GONE)
    try:
        return (function.__closure__ or ())[free.index(name)].cell_contents
    except ValueError:  # it was deleted
        return _GONE


def _part(value: Any, name: str) -> Any:
    """An attribute of a value, or what is under a key, without any code of it being run."""
    if isinstance(value, dict):
        return value.get(name, _GONE)
    own: Any = getattr(value, "__dict__", {})
    if name in own:
        return own[name]
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    return next((vars(kind)[name] for kind in kinds if name in vars(kind)), _GONE)


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The variables that code reads and that are not its own; the attributes and keys that it names."""
    found = [(x.opname, x.argval) for x in get_instructions(code)]
    names = {name for kind, name in found if kind in ("LOAD_GLOBAL", "LOAD_NAME")} | set(code.co_freevars)
    parts = {name for kind, name in found if kind in ("LOAD_ATTR", "LOAD_METHOD")}
    parts |= {x for x in code.co_consts if isinstance(x, str) and x.isidentifier()}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more, others = _names(inner)
            names, parts = names | more - set(code.co_cellvars) - set(code.co_varnames), parts | others
    return frozenset(names), frozenset(parts)


@cache
def _library(name: str | None) -> bool:
    """Whether a module is Python's own, torch, this one, or installed as these are."""
    root = (name or "").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "ndeflow", ""):
        return True
    where = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" in where or "dist-packages" in where
