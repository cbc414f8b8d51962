"""Where configurations and recipes lie, and how a command line becomes one configuration."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PACKAGE = Path(__file__).resolve().parent


class ConfigError(ValueError):
    """A command line that does not name a configuration; one line, with the near matches."""


class Recipe(NamedTuple):
    """A recipe's name, its file, and the paper's claim and minutes as its `about` states them."""

    name: str
    path: Path
    claim: str
    minutes: float | None


def folder(name: str) -> Path:
    """`configs` or `recipes`: of the checkout that the package runs from, else inside the installed package."""
    checkout = PACKAGE.parent / name
    return checkout if (PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir() else PACKAGE / name


def recipes() -> dict[str, Path]:
    """Recipe files by name: the built-in ones, then those in ./recipes, which win.

    A recipe is a file NAME.yaml, or a folder NAME with a recipe.yaml; the folders above it only group.
    """
    found: dict[str, Path] = {}
    for root in (folder("recipes"), Path("recipes")):
        for path in sorted(root.rglob("*.yaml")) if root.is_dir() else ():
            found[path.parent.name if path.stem == "recipe" else path.stem] = path.resolve()
    return found


def summaries() -> list[Recipe]:
    """All recipes with what they say about themselves."""
    return [_summary(name, path) for name, path in sorted(recipes().items())]


def _summary(name: str, path: Path) -> Recipe:
    about = (yaml.safe_load(path.read_text()) or {}).get("about") or {}
    return Recipe(name, path, str(about.get("claim", "")), about.get("minutes"))


def listing() -> str:
    """The recipes as a person reads them: name, minutes, claim."""
    rows = summaries()
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"  {row.name:<{width}}  {_minutes(row.minutes):>7}  {row.claim}" for row in rows]
    return "\n".join(["recipes (minutes on 2 cores, what is claimed):", *lines])


def _minutes(minutes: float | None) -> str:
    return "" if minutes is None else f"{minutes:g} min"


def near(word: str, names: Iterable[str]) -> str:
    """ "; did you mean a, b?", or all names where none is near."""
    names = sorted(set(names))
    matches = difflib.get_close_matches(word, names, 3, 0.5)
    if matches:
        return f"; did you mean {', '.join(matches)}?"
    return f"; there are {', '.join(names)}" if names else ""


def compose(overrides: Sequence[str]) -> Any:
    """The configuration of a command line's `key=value` words, before interpolation. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known, words = recipes(), [_by_name(word) for word in overrides]
    for word in overrides:
        if word.startswith("recipe=") and word.endswith((".yaml", ".yml")):
            path = Path(word.removeprefix("recipe="))
            if not path.is_file():
                raise ConfigError(f"found no recipe file {path}")
            known[_by_name(word).removeprefix("recipe=")] = path
    try:
        for name, path in known.items():
            ConfigStore.instance().store(group="recipe", name=name, node=OmegaConf.load(path), package="_global_")
        with initialize_config_dir(str(folder("configs")), version_base="1.3"):
            try:
                return hydra_compose("train", words)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                raise ConfigError(_explained(error, words, hydra_compose)) from error
    except (yaml.YAMLError, OSError) as error:
        raise ConfigError(f"cannot read a recipe: {' '.join(str(error).split())}") from error


def _by_name(word: str) -> str:
    """recipe=path/to/NAME.yaml as recipe=NAME, under which the file is registered."""
    if not word.startswith("recipe=") or not word.endswith((".yaml", ".yml")):
        return word
    path = Path(word.removeprefix("recipe="))
    return f"recipe={path.parent.name if path.stem == 'recipe' else path.stem}"


def _explained(error: Exception, words: Sequence[str], compose_again: Any) -> str:
    """One line for what Hydra found wrong."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write key=value, and quote what the shell would change"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"no {group} {name!r}{near(name, error.options or ())}"
    key = str(getattr(error.__cause__, "full_key", "") or "")
    if key:
        return f"no option {key!r}{near(key, _keys_without(key, words, compose_again))}"
    first = " ".join(str(error).splitlines()[:1])
    if match := re.search(r"Could not override '([^']+)'", first):
        return f"no option {match[1]!r}{near(match[1], _keys_without(match[1], words, compose_again))}"
    return first


def _keys_without(key: str, words: Sequence[str], compose_again: Any) -> list[str]:
    """All keys of the configuration that the other words compose."""
    from hydra.errors import HydraException

    rest = [word for word in words if word.lstrip("+~").partition("=")[0] != key]
    try:
        return list(flat(compose_again("train", rest)))
    except (HydraException, ValueError):
        return []


def flat(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all entries of a configuration, groups included."""
    for name in config:
        yield f"{prefix}{name}"
        child = config._get_node(name)
        if child is not None and _is_group(child):
            yield from flat(child, f"{prefix}{name}.")


def _is_group(node: Any) -> bool:
    from omegaconf import DictConfig

    return isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation()


def resolved(config: Any) -> dict[str, Any]:
    """The configuration as plain values. Raises ConfigError for a reference to nothing, or a missing value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        key, first = getattr(error, "full_key", None), str(error).splitlines()[0]
        raise ConfigError(f"option {key!r}: {first}" if key else first) from error


def read_config(path: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a run, with `key=value` words for entries that it has."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.load(path)
    OmegaConf.set_struct(config, True)
    for word in overrides:
        key, _, value = word.partition("=")
        try:
            OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"this run has no option {key!r}{near(key, flat(config))}") from error
    return config


def update(config: Any, **values: Any) -> None:
    """Set entries of a configuration, new keys inside them included."""
    from omegaconf import open_dict

    with open_dict(config):
        for key, value in values.items():
            config[key] = value


def to_yaml(config: dict[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def instantiate(node: Any, **extra: Any) -> Any:
    """The object that a part of a resolved configuration describes; whatever its class refuses is raised as such."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as make

    try:
        return make(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, ModuleNotFoundError)) and not isinstance(cause, InstantiationException):
            raise cause from error
        raise ConfigError(" ".join(str(error).split())) from error


def value(config: Any, key: str) -> Any:
    """The entry of a dotted name; None where there is none."""
    from omegaconf import OmegaConf

    return OmegaConf.select(config, key, throw_on_missing=False)


def expand(words: Sequence[str]) -> list[list[str]]:
    """The command lines of a sweep: the product of all comma-separated values. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
    except OverrideParseException as error:
        raise ConfigError(f"cannot read {error.override!r}; write key=value") from error
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [word]
        for o, word in zip(parsed, words, strict=True)
    ]
    return [list(job) for job in itertools.product(*choices)]
