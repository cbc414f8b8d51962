"""Imports point downward, and each outside package is imported only where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ndeflow"

LEVELS = [
    {"contracts"},
    {"numerics", "nets", "diffusion"},
    {"fields", "regularizers", "generative", "physics"},
    {"metrics"},  # plots draw what metrics compute
    {"models", "plots"},
    {"training"},
    {"tasks", "data"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
COMMANDS = len(LEVELS)  # whatever else lies in ndeflow/: they may import each other

ONLY = {
    "lightning": {"tasks", "data", "training", "train"},
    "hydra": {"train", "sample", "load", "resources", "claims"},
    "omegaconf": {"train", "sample", "load", "resources", "claims"},
    "wandb": {"training"},
    "torchdiffeq": {"numerics/backends"},
    "torchsde": {"numerics/backends"},
    "torchcde": set(),
    "torch._dynamo": {"numerics/lowering"},
    "torch._inductor": {"numerics/lowering"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """ndeflow/numerics/solve.py -> numerics/solve."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


def level(name: str) -> int:
    return LEVEL.get(name, COMMANDS)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The module less its `if TYPE_CHECKING:` blocks: what is imported when it runs."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(tree)


def upward(importer: str, names: Iterator[str]) -> list[str]:
    """The names that a module at `importer` may not import."""
    own = importer.split("/")[0]
    found = []
    for name in names:
        head, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if head != "ndeflow" or not rest or target == own:
            continue
        if level(target) > level(own) or (level(target) == level(own) < COMMANDS):
            found.append(name)
    return found


def stray(importer: str, names: Iterator[str]) -> list[str]:
    """The outside packages that a module at `importer` may not import."""
    homes = {importer, importer.split("/")[0]}
    return [
        name
        for name in names
        for package, allowed in ONLY.items()
        if f"{name}.".startswith(f"{package}.") and not homes & allowed
    ]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_point_downward(path):
    tree = without_type_checking(ast.parse(path.read_text()))
    if place(path) != "__init__":  # the package itself gathers the public names
        assert upward(place(path), imports(tree)) == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_outside_packages_stay_in_their_place(path):
    assert stray(place(path), imports(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_files_are_short(path):
    lines = path.read_text().splitlines()
    functions = [n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.FunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60]
    assert len(lines) <= 400 and long == []


def test_the_rules_can_fail():
    assert upward("numerics/solve", iter(["ndeflow.models.Model", "ndeflow.nets.mlp", "torch"])) == [
        "ndeflow.models.Model",
        "ndeflow.nets.mlp",
    ]
    assert upward("train", iter(["ndeflow.claims", "ndeflow.data.Files"])) == []
    assert stray("models/base", iter(["lightning.pytorch", "torchsde"])) == ["lightning.pytorch", "torchsde"]
    assert stray("numerics/backends", iter(["torchsde", "hydra.utils"])) == ["hydra.utils"]
