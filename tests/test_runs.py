"""Run folders: one run a folder, one process a run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from ndeflow import runs

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from ndeflow import runs
runs.share(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("NDEFLOW_RUN_DIR", "")  # restored afterwards
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    yield
    runs._release()


def test_two_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda form: "2030-01-01_00-00-00")
    folders = [runs.new_folder("demo", None) for _ in range(3)]
    assert [folder.name for folder in folders] == [f"2030-01-01_00-00-00{end}" for end in ("", "-1", "-2")]


def test_a_folder_is_held_by_one_process_and_free_once_that_was_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is training in"):
            runs.share(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    runs.share(tmp_path)


def test_other_processes_of_a_parallel_run_take_the_folder_of_the_first(tmp_path, monkeypatch):
    runs.share(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.new_folder("demo", None) == tmp_path


def test_an_abandoned_folder_leaves_nothing(tmp_path):
    folder = runs.new_folder("demo", str(tmp_path / "run"))
    runs.abandon(folder)
    assert not folder.exists()


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="resume="):
        runs.new_folder("demo", str(tmp_path))


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    runs.write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": "x"}})
    assert runs.read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.0], "c": {"d": "x"}}
