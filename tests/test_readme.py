"""README.md does what it says: its Python runs, its files train, its commands work and say what to expect."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ndeflow import sample, train
from ndeflow.resources import expand

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")
SHORT = ["trainer.max_epochs=2"]  # what a test takes of a training


def commands() -> list[str]:
    return [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


def words(command: str) -> list[str]:
    """The command as a shell sees it, without its comment."""
    return shlex.split(command, comments=True)


def arguments_of(command: str) -> list[str]:
    """What follows scripts/train, or python -m MODULE."""
    given = words(command)
    return given[1:] if given[0] == "scripts/train" else given[3:]


TRAININGS = [c for c in commands() if words(c)[0] == "scripts/train" or words(c)[1:3] == ["-m", "ndeflow.train"]]
SAMPLES = [c for c in commands() if words(c)[1:3] == ["-m", "ndeflow.sample"]]


class Desk:
    """A folder outside of the repository, with the files that README shows and a user's data. Its commands run in
    this process, which spares each of them the seconds of its imports.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, {}
        for _, text in BLOCKS:
            named = FILE.match(text)
            if named:
                path = folder / named[1]
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        header, *example = next(text for language, text in BLOCKS if language == "text").splitlines()
        rows = [row.replace("p", f"p{i}", 1) for i in range(20) for row in example]
        (folder / "my.csv").write_text("\n".join([header, *rows]) + "\n")
        (folder / "new.csv").write_text("\n".join([header, *example]) + "\n")

    def call(self, command: Callable[[list[str]], int], arguments: list[str]) -> int:
        """The command's exit status."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = dict(os.environ)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            status = command(arguments)
        for added in set(os.environ) - set(before):  # what a command leaves to its children
            del os.environ[added]
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return status

    def run_of(self, name: str) -> Path:
        """The folder of a run of this name, trained at the first time of asking."""
        if name not in self.runs:
            trained = next(c for c in TRAININGS if f"runs/{name}/" not in c and name in c)
            assert self.call(train.main, [*arguments_of(trained), *SHORT]) == 0
            (self.runs[name],) = (self.folder / "runs" / name).iterdir()
        return self.runs[name]

    def filled(self, arguments: list[str]) -> list[str]:
        """The arguments with the run folders of README replaced by ones that exist."""
        return [re.sub(r"runs/(\w+)/[0-9_-]+", lambda found: str(self.run_of(found[1])), a) for a in arguments]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))


def test_the_python_runs(desk, monkeypatch):
    monkeypatch.chdir(desk.folder)
    scope: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), scope)


@pytest.mark.parametrize("command", commands())
def test_every_command_says_how_long_it_takes_and_what_to_expect(command):
    _, _, comment = command.partition("  # ")
    assert re.search(r"\b(\d+ )?(minutes?|seconds?)\b", comment), "expected '  # N minutes: what to expect'"


@pytest.mark.parametrize("command", TRAININGS)
def test_the_training_commands_work(desk, command):
    arguments = desk.filled(arguments_of(command))
    jobs = expand([word for word in arguments if word != "-m"]) if "-m" in arguments else [arguments]
    for job in jobs:
        whole = not job or job[0].startswith("resume=")
        assert desk.call(train.main, job if whole else [*job, "check=true"]) == (0 if job else 2)


@pytest.mark.parametrize("command", SAMPLES)
def test_the_sampling_commands_work(desk, command):
    assert desk.call(sample.main, desk.filled(arguments_of(command))) == 0
    header = "x,y" if "count=" in command else "id,"
    assert (desk.folder / "predictions.csv").read_text().startswith(header)


def test_all_commands_are_known(desk):
    others = [words(c) for c in commands() if c not in TRAININGS + SAMPLES]
    assert {" ".join(c[:2]) if c[0] == "python" else c[0] for c in others} <= {
        "scripts/test",
        "python scripts/reproduce.py",
        "python scripts/benchmark.py",
    }
