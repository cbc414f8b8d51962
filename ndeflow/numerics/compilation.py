"""When a solve is compiled: the decision to switch a field, and the programs that are made then."""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ndeflow.numerics import replay
from ndeflow.numerics.accounts import Account, Last, account
from ndeflow.numerics.audit import Refusal, inspect
from ndeflow.numerics.entry import Entry
from ndeflow.numerics.fingerprint import Survey, noted, survey
from ndeflow.numerics.form import Form
from ndeflow.numerics.stepper import Eager, Stepper
from ndeflow.numerics.system import InitialValue
from ndeflow.numerics.transforms import differentiated_forward, transformed

if TYPE_CHECKING:
    from ndeflow.numerics.engine import Engine

VERSIONS = 8  # of one field's plain attributes: after so many, they are taken to change from solve to solve

COMPILE = ("auto", "on", "off")

_log = logging.getLogger("ndeflow")


def check_choice(compile: str) -> None:
    """Raises ValueError for what is no choice of when to compile."""
    if compile not in COMPILE:
        raise ValueError(f"expected compile {', '.join(COMPILE)}, got {compile!r}")


def stepper_for(
    solver: Any, kind: Callable[[Any], Form], marched: Any, system: InitialValue, recording: bool, keeping: bool
) -> Stepper:
    """What a solve computes its steps with: an engine where it is to be compiled.

    kind: gives the form of the steps of `marched`, what the solver marches as. recording: the solve records gradients.
    keeping: then what steps compute is kept for the backward pass. Raises ValueError with the reason where
    `solver.compile` is "on" and the solve cannot be compiled; with "auto" the reason is logged once for each field.
    """
    module = system.problem.field
    if solver.compile == "off":
        return Eager(solver)
    obstacle = _obstacle(system)
    if obstacle is not None:
        _refused(solver, module, obstacle, None)
        return Eager(solver)
    mine = account(module)
    if not _due(solver, mine, recording):
        return Eager(solver, mine if recording else None)
    engine = _engine(solver, kind, marched, system, mine, recording, keeping)
    if isinstance(engine, str):
        _refused(solver, module, engine, mine)
        return Eager(solver)
    mine.compiled |= recording
    return engine


def unproven(system: InitialValue) -> str | None:
    """Why "auto" leaves steps uncompiled that might be no faster, or less exact; None: they are faster.

    They were in every case that was timed: of training steps of networks d-w-w-d in float32, "off" over compiled: w 64,
    3.1 to 1.7 at 32 to 512 rows; w 256, 2.3 to 1.1 at 8 to 2048 rows; w 512 and 1024, 1.7 to 1.05.
    """
    y0 = system.problem.y0
    if y0.device.type not in ("cpu", "cuda"):
        return f'that it would be faster on {y0.device.type} is not known; try compile="on"'
    if y0.dtype not in (torch.float32, torch.float64):
        return f'in {y0.dtype} compiled steps round differently; solve in float32, or choose compile="on"'
    return None


@cache
def _compiler() -> str | None:
    """Why nothing can be compiled for the CPU of this machine; None: it can."""
    found = any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))
    return None if found else "no C++ compiler was found; install g++ or clang"


@cache
def _engines() -> Any:
    """Imported when first needed, for that imports the compiler and takes half a second."""
    from ndeflow.numerics.engine import Engine

    return Engine


def _engine(
    solver: Any,
    kind: Callable[[Any], Form],
    marched: Any,
    system: InitialValue,
    mine: Account,
    recording: bool,
    keeping: bool,
) -> Engine | str:
    """The engine of a solve, or why there is none; where nothing is different, that of the last one anew."""
    modules = [system.problem.field, *(integrand for integrand, _ in system.integrands)]
    now, ambient = mine.watch.look(modules, mine.versions.reads), replay.Ambient.of(system.problem.y0)
    setting = solver.compile, ambient, *_setting(system)
    about = kind, marched, system.rows, recording, keeping, setting
    making, last = partial(_making, mine, modules[0]), mine.last
    if last is not None and last.now is now and last.about == about:
        return last.engine.anew(modules, making)
    form = kind(marched)
    entry = _entry(form, system, mine, modules, now, setting)
    if isinstance(entry, str):
        return entry
    engine = _engines()(form, system, entry, modules, now, ambient, recording and keeping, making)
    _prepare(engine, system, mine, mine.versions.number(now), recording)
    if entry.refusal is not None:
        return entry.refusal
    mine.last = Last(now, about, engine.anew([], nullcontext))  # one that knew the field would keep it alive
    return engine


def _entry(
    form: Form, system: InitialValue, mine: Account, modules: list[nn.Module], now: Survey, setting: tuple[Any, ...]
) -> Entry | str:
    """What is known of a field in a setting, found now if it is not, or why nothing can be."""
    missing = _compiler() if system.problem.y0.device.type == "cpu" else None
    if missing is not None:
        return missing
    version = mine.versions.number(now)
    if version >= VERSIONS:
        return f"{mine.versions.changing()} changes from solve to solve; pass it as context"
    key = version, *form.key, *setting
    entry = mine.entries.get(key)
    if entry is None or system.rows not in entry.rows:
        with _aside(modules, system.problem.y0.device):
            found = Entry.of(form, system, now.tensors, mine.versions.reads)
        if entry is None:
            found.refusal = unproven(system) if setting[0] == "auto" else None
            entry = mine.entries[key] = found
        elif found.reached != entry.reached:
            return f"what it learns is another with {system.rows} rows than with {min(entry.rows)}"
        entry.rows |= found.rows
    return entry


def _due(solver: Any, mine: Account, recording: bool) -> bool:
    """Whether this solve is to be compiled; only those that record gradients count, and switch."""
    if solver.compile == "auto" and recording and not mine.switched:
        mine.switched = mine.evaluations >= solver.compile_after
    return solver.compile == "on" or mine.switched


def _obstacle(system: InitialValue) -> str | None:
    """What forbids compilation whatever the field does."""
    y0 = system.problem.y0
    if not isinstance(system.problem.field, nn.Module):
        return "it is not an nn.Module, so that its parameters cannot be found; wrap it in a module"
    if y0.is_complex():
        return "its state is complex; use view_as_real"
    if transformed():
        return "it is under a torch.func transform"
    if differentiated_forward():
        return "it is inside a level of forward-mode differentiation"
    return None


def _setting(system: InitialValue) -> tuple[Hashable, ...]:
    """What a program of a field depends on beside its attributes and the number of rows."""
    y0, edges = system.problem.y0, system.segments.edges
    conditions = tuple([(x.dtype, x.shape[1:], x.requires_grad) for x in system.example()])
    modules = tuple([id(module) for module, _ in system.integrands])
    return y0.dtype, y0.device, system.shape, edges.dim(), system.dense, conditions, modules, torch.get_num_threads()


def _prepare(engine: Engine, system: InitialValue, mine: Account, version: int, recording: bool) -> None:
    """Make the programs that this solve needs, or note why they cannot be made."""
    entry = engine.entry
    passes = {"kept" if engine.keeping else "step", *(["backward"] if recording else [])} - entry.prepared
    if entry.refusal is not None or not passes:
        return
    before = survey(engine.modules)
    try:
        with noted(mine.versions.reads):
            inspect(engine.modules)
        with engine.making(""), _aside(engine.modules, system.problem.y0.device):
            for name in sorted(passes, reverse=True):
                engine.prepare(system, backward=name == "backward")
        entry.prepared |= passes
    except Refusal as refusal:
        entry.refusal = str(refusal)
    mine.versions.settle(version, before, survey(engine.modules, mine.versions.reads))


@contextmanager
def _making(mine: Account, field: nn.Module, part: str) -> Iterator[None]:
    """Say what is compiled inside, of a field, where that is new, and how long it took; count that.

    As warnings: what is less is not shown where a program has not set up logging, and nobody waits in the dark. part:
    what of a solve, where it is not all that is needed.
    """
    from ndeflow.numerics.lowering import kept_in  # imports the compiler

    if mine.compiling:
        yield
        return
    name, start = _name(field), time.perf_counter()
    whole = f"the {part} of {name}" if part else name
    new = mine.first(f"compiling {part}")
    if new:
        _log.warning("%s is being compiled: about half a minute once, then kept in %s", whole, kept_in())
    mine.compiling, collecting = True, gc.isenabled()
    gc.disable()  # looking for garbage again and again takes a tenth of the time
    try:
        yield
    finally:
        mine.compiling = False
        if collecting:
            gc.enable()
        seconds = time.perf_counter() - start
        mine.seconds += seconds
    if new:
        _log.warning("%s was compiled in %.0f seconds", whole, seconds)


@contextmanager
def _aside(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, evaluations change neither random numbers nor buffers: a run that compiles again goes on as the first."""
    parts = {id(part): part for module in modules for part in module.modules()}.values()
    kept = [(part, dict(part._buffers)) for part in parts]
    for part, buffers in kept:
        part._buffers.update({k: x.clone() for k, x in buffers.items() if x is not None and not x.requires_grad})
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


def _refused(solver: Any, module: Any, reason: str, mine: Account | None) -> None:
    """Raise where compilation was demanded; else say the reason, once for each field."""
    if solver.compile == "on":
        raise ValueError(f'expected a field that can be compiled, got {_name(module)}: {reason}, or use compile="off"')
    if mine is not None and mine.first(reason):
        _log.warning("%s is not compiled: %s", _name(module), reason)


def _name(field: Any) -> str:
    return field._get_name() if isinstance(field, nn.Module) else type(field).__name__
