"""Options held against the annotations of the parameters that they are for, before any object is made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from ndeflow.load import located
from ndeflow.resources import ConfigError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "text", NoneType: "null"}
ACCEPTED = {int: (int,), float: (int, float), bool: (bool,), str: (str,), Path: (str,), NoneType: (NoneType,)}
LISTS = (list, tuple, Sequence, Iterable, Collection)


def check(config: Any, plain: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse values of another kind than their parameters'. Raises ConfigError naming the option.

    plain: `config`, resolved. What an interpolation stands for is checked where it is written. Parameters without
    annotation take anything.
    """
    wanted = parameters(plain["_target_"]) if "_target_" in plain else {}
    for name, value in plain.items():
        if name in wanted and not fits(value, wanted[name]):
            raise ConfigError(f"expected {prefix}{name} to be {described(wanted[name])}, got {value!r}")
        if isinstance(value, dict) and not config._get_node(name)._is_interpolation():
            check(config[name], value, f"{prefix}{name}.")


def parameters(target: str) -> dict[str, Any]:
    """The annotations of a class's or function's parameters by name, those that it hands on to its bases included.

    A parameter that is None by default may be None; one without annotation may be anything, whatever a base says.
    """
    found: dict[str, Any] = {}
    try:
        made = located(target)
        bases = made.__mro__ if isinstance(made, type) else ()
        for maker in [base.__init__ for base in reversed(bases) if "__init__" in vars(base)] or [made]:
            own = hints(maker)
            for name, parameter in signature(maker).parameters.items():
                own.setdefault(name, Any)
                own[name] = own[name] | None if parameter.default is None else own[name]
            found |= own
    except Exception:  # of code that is not ours; whatever is wrong with it is told where the object is made
        return {}
    return found


def hints(maker: Any) -> dict[str, Any]:
    """The annotations of a function; a name that only type checkers know stands for anything."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            found = get_type_hints(maker, localns=unknown)
            break
        except NameError as error:
            if error.name in unknown:
                raise
            unknown[error.name or ""] = Any
    handed_on = [get_args(hint)[0] for hint in found.values() if get_origin(hint) is Unpack]
    return found | {name: hint for keywords in handed_on for name, hint in get_type_hints(keywords).items()}


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be what the annotation says; a mapping may be any object, a foreign class take any."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if isinstance(value, dict) or not isinstance(kind, type):
        return True
    if kind in ACCEPTED:
        return isinstance(value, ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool)
    if kind is tuple and inner[1:] not in ((), (...,)):
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind in LISTS:
        each = inner[0] if inner else Any
        return isinstance(value, list) and all(fits(one, each) for one in value)
    return not kind.__module__.startswith(("ndeflow.", "collections.abc"))


def described(hint: Any) -> str:
    """An annotation in words."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(described, inner)))
    if kind is Literal:
        return " or ".join(map(str, inner))
    if kind in WORDS:
        return WORDS[kind]
    if kind in LISTS:
        return f"a list (each {described(inner[0])})" if inner else "a list"
    return f"{{_target_: a {kind.__name__}, ...}}"
