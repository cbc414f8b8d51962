"""scripts/train and scripts/test set themselves up: what they install, when, and what they say when they can not.

Python and pip are played by a small shell script, which writes down what it was asked.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = "bash env cat cksum dirname flock grep mkdir rm sed sleep tail tee tr cp chmod".split()

PYTHON = r"""#!/usr/bin/env bash
here="$(dirname "$0")"
case "$*" in
*version_info*) echo "${FAKE_VERSION:-3.12}" ;;
*platform*) echo "${FAKE_VERSION:-3.12}.1" ;;
*ensurepip*) exit "${FAKE_NO_VENV:-0}" ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip"*)
    echo "$*" >>"$CALLS"
    sleep "${FAKE_SECONDS:-0}"
    echo "Downloading torch-2.13.0.whl (190.1 MB)"
    [ -z "$FAKE_PIP_FAILS" ] || { echo "ERROR: No matching distribution found for torch==2.13.0"; exit 1; } ;;
"-c ") exit 0 ;;
*) echo "ran: $*"; exit "${FAKE_STATUS:-0}" ;;
esac
"""


class Checkout:
    """A copy of the scripts, with stand-ins for everything outside."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls = folder / "my checkout", folder / "bin", folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        fake = self.bin / "python3"
        fake.write_text(PYTHON)
        fake.chmod(0o755)

    def start(self, *command: str, **fakes: str) -> subprocess.Popen[str]:
        env = {"PATH": str(self.bin), "CALLS": str(self.calls), **{f"FAKE_{k}": v for k, v in fakes.items()}}
        return subprocess.Popen(
            ["bash", str(self.root / command[0]), *command[1:]],
            cwd=self.bin.parent,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str, **fakes: str) -> tuple[int, str, str]:
        process = self.start(*command, **fakes)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def installed(self) -> int:
        """How often pip was called since the last time of asking."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return len(calls)


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_first_use_sets_up_and_the_second_does_not(checkout):
    status, out, err = checkout.run("scripts/train", "recipe=quickstart", "data.path=my file.csv")
    assert status == 0 and out == "ran: -m ndeflow.train recipe=quickstart data.path=my file.csv\n"
    assert "creating" in err and "Python 3.12.1" in err and "Downloading torch-2.13.0.whl (190.1 MB)" in err
    assert checkout.installed() == 2
    assert checkout.run("scripts/train")[1:] == ("ran: -m ndeflow.train\n", "")
    assert checkout.installed() == 0


def test_versions_are_pinned(checkout):
    checkout.run("scripts/train")
    first, second = checkout.calls.read_text().splitlines()
    assert "scripts/constraints.txt" in first and first.endswith("[data]")
    assert "--no-deps aeon==1.6.0" in second
    pins = (ROOT / "scripts" / "constraints.txt").read_text()
    assert "\ntorch==2.13.0\n" in pins and all("==" in line for line in pins.splitlines() if line[0] != "#")


def test_the_status_of_the_command_is_passed_on(checkout):
    assert checkout.run("scripts/train", STATUS="130")[0] == 130


def test_the_tests_need_more_than_training(checkout):
    checkout.run("scripts/train")
    checkout.installed()
    assert checkout.run("scripts/test", "tests/x.py")[1] == "ran: -m pytest tests/x.py\n"
    assert checkout.installed() == 2
    checkout.run("scripts/train")
    checkout.run("scripts/test")
    assert checkout.installed() == 0


def test_ci_runs_style_types_and_tests(checkout):
    status, out, _ = checkout.run(".ci/run")
    assert status == 0
    assert [line.split()[2] for line in out.splitlines()] == ["ruff", "ruff", "pyright", "pytest"]


def test_ci_stops_at_the_first_failure(checkout):
    assert checkout.run(".ci/run", STATUS="1")[:2] == (1, "ran: -m ruff check .\n")


@pytest.mark.parametrize(
    ("file", "text", "installs"),
    [
        ("scripts/constraints.txt", "\nextra==1\n", 2),
        ("pyproject.toml", "\n[tool.other]\nx = 1\n", 0),
    ],
)
def test_only_changed_requirements_install_again(checkout, file, text, installs):
    checkout.run("scripts/train")
    checkout.installed()
    kept = checkout.root / ".venv" / "kept"
    kept.touch()
    path = checkout.root / file
    path.write_text(path.read_text() + text)
    checkout.run("scripts/train")
    assert checkout.installed() == installs and kept.exists()


def test_a_moved_checkout_installs_again(checkout):
    checkout.run("scripts/train")
    checkout.installed()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run("scripts/train")[0] == 0 and checkout.installed() == 2


@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_an_interrupted_set_up_begins_again(checkout, moment):
    venv = checkout.root / ".venv"
    if moment == "venv":
        venv.mkdir()
        (venv / ".ndeflow").write_text("installing\n")
    else:
        assert checkout.run("scripts/train", PIP_FAILS="1")[0] == 1
        checkout.installed()
    (venv / "torn").touch()
    status, _, err = checkout.run("scripts/train")
    assert status == 0 and "creating" in err and not (venv / "torn").exists()
    assert checkout.installed() == 2


def test_a_broken_python_is_replaced(checkout):
    checkout.run("scripts/train")
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert checkout.run("scripts/train")[0] == 0


@pytest.mark.parametrize(
    ("fakes", "message"),
    [
        ({"VERSION": "3.9"}, "expected Python 3.11, 3.12 or 3.13, found python3 is 3.9; install one, or name it"),
        ({"VERSION": "3.14"}, "found python3 is 3.14"),
        (
            {"NO_VENV": "1"},
            "Python 3.12 lacks its venv module; install it (Debian, Ubuntu: apt install python3.12-",
        ),
        ({"PIP_FAILS": "1"}, "pip could not install the requirements: ERROR: No matching distribution found for torch"),
    ],
)
def test_what_can_not_be_set_up_is_said_in_one_line(checkout, fakes, message):
    status, out, err = checkout.run("scripts/train", **fakes)
    assert status == 1 and out == ""
    assert message in err.splitlines()[-1]


def test_no_python_at_all(checkout):
    (checkout.bin / "python3").unlink()
    status, _, err = checkout.run("scripts/test")
    assert status == 1 and "found none" in err and len(err.splitlines()) == 1


def test_another_environment_is_left_alone(checkout):
    (checkout.root / ".venv").mkdir()
    status, _, err = checkout.run("scripts/train")
    assert status == 1 and "was not made by this script" in err and (checkout.root / ".venv").exists()


def test_two_first_runs_at_once_install_once(checkout):
    runs = [checkout.start("scripts/train", SECONDS="0.3") for _ in range(2)]
    assert [run.communicate(timeout=30)[0] for run in runs] == ["ran: -m ndeflow.train\n"] * 2
    assert checkout.installed() == 2
