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
    try:
        content = yaml.safe_load(path.read_text())
        about = dict((content or {}).get("about") or {})
    except (yaml.YAMLError, OSError, AttributeError, TypeError, ValueError):
        return Recipe(name, path, f"(cannot be read: {path})", None)
    return Recipe(name, path, str(about.get("claim", "")), about.get("minutes"))


def listing() -> str:
    """The recipes as a person reads them: name, minutes, claim."""
    rows = summaries()
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"  {row.name:<{width}}  {_minutes(row.minutes):>7}  {row.claim}" for row in rows]
    return "\n".join(["recipes (minutes on 2 cores, what is claimed):", *lines])


def _minutes(minutes: float | None) -> str:
    return f"{minutes:g} min" if isinstance(minutes, (int, float)) else ""


def near(word: str, names: Iterable[str]) -> str:
    """ "; did you mean a, b?", or the names beside it where none is near."""
    names = sorted(set(names))
    matches = difflib.get_close_matches(word, names, 3, 0.6)
    if matches:
        return f"; did you mean {', '.join(matches)}?"
    parent = word.rpartition(".")[0]
    beside = [name for name in names if name.rpartition(".")[0] == parent]
    beside = beside or [name for name in names if "." not in name]
    return f"; there are {', '.join(beside)}" if 0 < len(beside) <= 16 else ""


def groups() -> set[str]:
    """The groups of configs/: data, model, ..."""
    return {path.name for path in folder("configs").iterdir() if path.is_dir()}


def compose(overrides: Sequence[str]) -> Any:
    """The configuration of a command line's `key=value` words, before interpolation. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register(overrides)
    words = [_without_null(_by_name(word)) for word in overrides]
    with initialize_config_dir(str(folder("configs")), version_base="1.3"):
        try:
            return hydra_compose("train", words)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explained(error, words, hydra_compose)) from error


def _register(words: Sequence[str]) -> None:
    """Make the recipes known to Hydra, one that is given as a path included."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {**recipes(), **{_by_name(word).removeprefix("recipe="): _path(word) for word in words if _is_path(word)}}
    chosen = {_by_name(word).removeprefix("recipe=") for word in words if word.startswith("recipe=")}
    store = ConfigStore.instance()
    store.repo.pop("recipe", None)  # those of an earlier call in the same process
    for name, path in known.items():
        try:
            store.store(group="recipe", name=name, node=OmegaConf.load(path), package="_global_")
        except (yaml.YAMLError, OSError, OmegaConfBaseException, ValueError, AssertionError) as error:
            if name in chosen:
                raise ConfigError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error


def _is_path(word: str) -> bool:
    return word.startswith("recipe=") and word.endswith((".yaml", ".yml"))


def _path(word: str) -> Path:
    """The file of recipe=path/to/NAME.yaml."""
    path = Path(word.removeprefix("recipe=")).expanduser()
    if not path.is_file():
        raise ConfigError(f"found no recipe file {path}")
    return path


def _by_name(word: str) -> str:
    """recipe=path/to/NAME.yaml as recipe=NAME, under which the file is registered."""
    return f"recipe={recipe_name(word.removeprefix('recipe='))}" if _is_path(word) else word


def recipe_name(given: str) -> str:
    """The name of a recipe that is given by name or path: of the file, or of the folder of a recipe.yaml."""
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return given
    return path.resolve().parent.name if path.stem == "recipe" else path.stem


def _without_null(word: str) -> str:
    """GROUP=null as Hydra says it: ~GROUP."""
    key, _, value = word.partition("=")
    return f"~{key}" if value == "null" and key in groups() else word


def _explained(error: Exception, words: Sequence[str], compose_again: Any) -> str:
    """One line for what Hydra found wrong."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"no {group} {name!r}{near(name, error.options or ())}"
    first = " ".join(str(error).splitlines()[:1])
    named = re.search(r"Could not (?:override|delete) '([^'@]+)", first)
    key = str(getattr(error.__cause__, "full_key", "") or "") or (named[1] if named else "")
    if key:
        return f"no option {key!r}{near(key, _keys_without(key, words, compose_again))}"
    return f"{first}; for a sweep over values add -m" if first.startswith("Ambiguous value") else first


def unreadable(word: str) -> str:
    """What to say of a word that is no key=value."""
    cure = f"did you mean recipe={word}?" if word in recipes() else "quote what the shell would change"
    return f"expected key=value, got {word!r}; {cure}"


def _keys_without(key: str, words: Sequence[str], compose_again: Any) -> list[str]:
    """All keys of the configuration that the other words compose."""
    from hydra.errors import HydraException

    rest = [word for word in words if not f"{word.lstrip('+~').partition('=')[0]}.".startswith(f"{key}.")]
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
    from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        key, first = getattr(error, "full_key", None), str(error).splitlines()[0]
        if isinstance(error, MissingMandatoryValue):
            raise ConfigError(f"expected {key}=..., got none: the option has no default") from error
        if isinstance(error, InterpolationKeyError) and (missing := re.search(r"'([^']+)'", first)):
            raise ConfigError(f"option {key!r} refers to {missing[1]!r}{near(missing[1], flat(config))}") from error
        raise ConfigError(f"option {key!r}: {first}" if key else first) from error


def read_config(path: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a run, with `key=value` words for entries, or choices of groups, that it has."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.load(path)
        OmegaConf.set_struct(config, True)
    except (yaml.YAMLError, OSError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(unreadable(word))
        try:
            chosen = compose([word])[key] if key in groups() else yaml.safe_load(value)
            OmegaConf.update(config, key, chosen, merge=False)
        except yaml.YAMLError as error:
            raise ConfigError(unreadable(word)) from error
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
        raise ConfigError(unreadable(error.override)) from error
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [word]
        for o, word in zip(parsed, words, strict=True)
    ]
    return [list(job) for job in itertools.product(*choices)]
