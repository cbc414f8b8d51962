"""A trained run back as a model: only classes that are trusted are instantiated, only plain values are read."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor

from ndeflow.contracts import DataSpec
from ndeflow.models.base import Model
from ndeflow.training.checkpoints import KEY, read_checkpoint

TRUSTED = ("ndeflow", "torch.nn", "torch.optim")
_DIRECTIVES = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def load(run: str | Path, *, trust: Collection[str] = ()) -> Model:
    """The model of a trained run with its best weights, in evaluation mode, on the CPU; `model.spec` is set.

    run: a run folder, or a checkpoint file. trust: full names, such as "mine.Model", of classes outside of ndeflow,
    torch.nn and torch.optim that the run's model may be made of; loading it runs their code.

    Raises ValueError, one line: no checkpoint, a damaged one or one of another format, a class that is not trusted,
    weights that do not fit the class.
    """
    return read_run(run).model(trust)


@dataclass(frozen=True)
class Run:
    """What a checkpoint knows: its path, the resolved configuration, what the data were, the task's weights."""

    checkpoint: Path
    config: dict[str, Any]
    spec: DataSpec
    weights: dict[str, Tensor]

    def model(self, trust: Collection[str] = ()) -> Model:
        """See `load`."""
        model = build(self.config["model"], trust)
        if not isinstance(model, Model):
            raise ValueError(f"expected a run of an ndeflow.Model, got {type(model).__name__}: {self.checkpoint}")
        model.spec = self.spec
        prefix = "model."
        weights = {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}
        real = next((w.dtype for w in weights.values() if w.is_floating_point()), torch.get_default_dtype())
        try:
            model.to(real).load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"expected the weights of {type(model).__name__}, got others in {self.checkpoint} ({reason[:200]}); "
                "has the class changed since the run?"
            ) from error
        return model.eval()


def read_run(run: str | Path) -> Run:
    """Read the best checkpoint of a run folder (the last where none is best yet), or a checkpoint file."""
    path = checkpoint_of(Path(run))
    checkpoint = read_checkpoint(path)
    own = checkpoint[KEY]
    config = yaml.safe_load(own["config"])
    return Run(path, config, DataSpec.from_dict(own["spec"]), checkpoint["state_dict"])


def checkpoint_of(run: Path) -> Path:
    """Which file is read. Raises ValueError where `run` is neither a folder nor a file."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise ValueError(f"expected a run folder or a checkpoint, found nothing at {run}; see the folder runs/")
    best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    return last if last.is_file() and not best.is_file() else best


def build(node: Any, trust: Collection[str] = ()) -> Any:
    """The objects that a configuration describes: a mapping with `_target_` is a call of that class.

    Classes are checked before they are called, and nothing else is ever called. Raises ValueError for a class
    that is not trusted or not found, or refuses its arguments.
    """
    if isinstance(node, list):
        return [build(value, trust) for value in node]
    if not isinstance(node, dict):
        return node
    values = {name: build(value, trust) for name, value in node.items() if name not in _DIRECTIVES}
    if "_target_" not in node:
        return values
    made = trusted(node["_target_"], trust)
    arguments = build(node.get("_args_", []), trust)
    if node.get("_partial_"):
        return partial(made, *arguments, **values)
    try:
        return made(*arguments, **values)
    except TypeError as error:
        raise ValueError(f"{node['_target_']} does not take the arguments of this run ({error})") from error


def trusted(name: Any, trust: Collection[str] = ()) -> Any:
    """The class of that full name, if `trust` names it or it is defined in ndeflow, torch.nn or torch.optim.

    Of an untrusted name not even the module is imported. Raises ValueError.
    """
    if isinstance(name, str) and name in trust:
        return located(name)
    refusal = ValueError(
        f"this run needs {name}, which is not of ndeflow, torch.nn or torch.optim; if you trust its code, "
        f'say so: trust=["{name}"]'
    )
    if not isinstance(name, str) or not within(name):
        raise refusal
    found = located(name)
    if not isinstance(found, type) or not within(f"{found.__module__}."):
        raise refusal
    return found


def within(name: str) -> bool:
    return name.startswith(tuple(f"{package}." for package in TRUSTED))


def located(name: str) -> Any:
    """The object of a full name: the longest part that is a module, then attributes. Raises ValueError."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"importing {module} failed: {error}") from error
        try:
            for part in parts[end:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise ValueError(f"found no {name}; run this where Python can import it, or with the version that trained the run")


class _Callable(ModuleType):
    """`ndeflow.load` is this module as soon as anything imports it, and the function before: both are called alike."""

    def __call__(self, run: str | Path, *, trust: Collection[str] = ()) -> Model:
        return load(run, trust=trust)


sys.modules[__name__].__class__ = _Callable
