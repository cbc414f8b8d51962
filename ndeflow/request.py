"""What a command line asks for: read and checked before anything is made; at first without anything heavy imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndeflow import resources
from ndeflow.resources import ConfigError

CHANGEABLE = (
    *("trainer", "logger", "quiet", "log_every", "save_every", "patience", "references"),
    *("data.path", "data.root"),
)
"""What may be given anew to a run that is resumed; all else would make it another run."""

KINDS: tuple[tuple[str, Any, str, float | None], ...] = (
    ("seed", int, "a whole number", 0),
    ("log_every", int, "a number of steps", 1),
    ("patience", int, "a number of validations", 0),
    ("save_every", (int, float), "a number of seconds", 0),
    ("check", bool, "true or false", None),
    ("quiet", bool, "true or false", None),
    ("optimizer.lr", (int, float), "a number", None),
    ("trainer.devices", (int, str, list), "a number of processes", None),
    ("trainer.max_epochs", int, "a number of epochs", None),
    ("trainer.max_steps", int, "a number of steps", None),
    ("trainer.threads", int, "a number of threads", 1),
    ("trainer.gradient_clip_val", (int, float), "a number", 0),
    ("trainer.check_val_every_n_epoch", int, "a number of epochs", 1),
    ("trainer.accumulate_grad_batches", int, "a number of batches", 1),
    ("data.batch_size", int, "a number of rows", 1),
    ("data.eval_batch_size", int, "a number of rows", 1),
)
"""Options of every run: what they must be, in words, and the least that they may be, if any."""

ROOTS = ("recipe", "data", "task", "trainer", "logger")
"""The groups that a run reads itself; the others are read where a group refers to them, as in `solver: ${solver}`."""


@dataclass(frozen=True)
class Request:
    """A run to be made: its configuration, before interpolation, and the folder that it continues, if any.

    changed: whether a resumed run was given options of its own.
    """

    config: Any
    resumed: Path | None = None
    changed: bool = False


def read(words: Sequence[str]) -> Request:
    """The request of `key=value` words. Raises ConfigError, one line."""
    folders = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    others = [word for word in words if not word.startswith("resume=")]
    request = _resumed(Path(folders[-1]).expanduser(), others) if folders else _new(others)
    _check(request.config)
    if request.resumed is None:
        _check_read(others, request.config)
    return request


def _new(words: Sequence[str]) -> Request:
    config = resources.compose(words)
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    resources.update(config, name=config.name or resources.recipe_name(given.get("recipe") or given.get("data", "run")))
    start = config.init_from and Path(config.init_from).expanduser()
    if start and not start.exists():
        raise ConfigError(f"init_from: expected a run folder or a checkpoint, found nothing at {start}; see runs/")
    return Request(config)


def _check_read(words: Sequence[str], config: Any) -> None:
    """Refuse a group that is chosen though no part of the configuration refers to it."""
    text, others = str(config), resources.groups() - {*ROOTS}
    for word in words:
        group, _, name = word.partition("=")
        if group in others and name != "null" and not re.search(rf"\$\{{[^{{}}]*\b{group}\b", text):
            reader = "task" if group == "model" else "model or task"
            raise ConfigError(f"expected a {reader} that reads {group}, got none; leave out {word}")


def _resumed(folder: Path, words: Sequence[str]) -> Request:
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"expected a run folder to resume, found no config.yaml in {folder}; see the folder runs/")
    recipe = next((word.removeprefix("recipe=") for word in words if word.startswith("recipe=")), None)
    words = [word for word in words if not word.startswith("recipe=")]
    config = resources.read_config(saved, [word for word in words if _may_change(word)])
    if recipe is not None and resources.recipe_name(recipe) != config.name:
        raise ConfigError(f"expected a run of recipe {recipe}, got one of {config.name}: {folder}; leave out recipe=")
    if other := next((word for word in words if not _may_change(word)), None):
        raise ConfigError(
            f"a resumed run keeps its {other.partition('=')[0]}; for a new run that starts from its weights: "
            f"recipe={config.name} init_from={folder} {other}"
        )
    return Request(config, folder, changed=bool(words))


def _may_change(word: str) -> bool:
    key = word.partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE)


def _check(config: Any) -> None:
    """Refuse a run without data, model or task, values of the wrong kind, references to nothing, missing values."""
    for key in ("data", "model", "task"):
        if config[key] is None or "_target_" not in config[key]:
            known = ", ".join(sorted(path.stem for path in (resources.folder("configs") / key).glob("*.yaml")))
            raise ConfigError(f"expected {key}=NAME, got none; choose a recipe, or one of {known}")
    plain = resources.resolved(config)
    for key, kind, what, least in KINDS:
        value = resources.value(config, key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise ConfigError(f"expected {key} to be {what}, got {value!r}")
        if value is not None and least is not None and value < least:
            raise ConfigError(f"expected {key} to be {what}, at least {least}, got {value!r}")
    references = resources.value(config, "references")
    if not isinstance(references, bool) and references not in resources.recipes():
        near = resources.near(str(references), resources.recipes())
        raise ConfigError(f"expected references to be true, false or the name of a recipe, got {references!r}{near}")
    seed = resources.value(config, "seed")
    if seed >= 2**32:
        raise ConfigError(f"expected seed to be from 0 to {2**32 - 1}, got {seed}")
    epochs = resources.value(config, "trainer.max_epochs")
    if epochs is not None and epochs < -1:
        raise ConfigError(f"expected trainer.max_epochs to be at least 1, or -1 for no limit, got {epochs}")
    from ndeflow.options import check  # imports torch

    check(config, plain)
