"""A wheel holds all that a command needs, and works from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel, which is all that installing a pure Python wheel puts there."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("ndeflow-*-py3-none-any.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


def test_code_configs_and_recipes_are_inside(installed):
    assert files(installed / "ndeflow", "*.py") >= files(ROOT / "ndeflow", "*.py")
    for folder in ("configs", "recipes"):
        assert files(installed / "ndeflow" / folder, "*.yaml") == files(ROOT / folder, "*.yaml") != set()
    assert {path.name for path in installed.iterdir()} == {"ndeflow", next(installed.glob("*.dist-info")).name}


def test_the_licence_is_inside(installed):
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()


def test_the_command_lists_recipes_from_an_empty_folder(installed, tmp_path):
    found = run(installed, tmp_path, "-c", "import ndeflow; print(ndeflow.__file__)").stdout.strip()
    assert Path(found).is_relative_to(installed)
    listed = run(installed, tmp_path, "-m", "ndeflow.train")
    assert listed.returncode == 2 and "quickstart" in listed.stdout + listed.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_trains_from_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "ndeflow.train", "recipe=quickstart", "check=true")
    assert done.returncode == 0, done.stdout + done.stderr
