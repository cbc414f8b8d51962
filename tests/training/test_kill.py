"""A run whose process is killed at random moments ends as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import torch

from tests.training import tiny_training as tiny


def test_killed_at_random(tmp_path):
    """Three processes of a run are killed at random moments, without warning and with; the fourth ends it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    reference = start(whole)
    generator = random.Random(time.time_ns())
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start(cut)
        before = stamp(cut)
        while stamp(cut) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.5))
        process.send_signal(signum)
        assert process.wait(60) in (-signal.SIGKILL, 128 + signal.SIGTERM, 0)
    assert reference.wait(60) == 0
    assert start(cut).wait(60) == 0
    expected = (torch.load(whole / "final.pt"), tiny.reproducible(whole), tiny.best(whole))
    tiny.assert_same_run(cut, torch.load(cut / "final.pt"), expected)


def start(run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen([*tiny.COMMAND, str(run_dir), "6", "0.02"], cwd=tiny.ROOT)


def stamp(run_dir: Path) -> float:
    last = run_dir / "checkpoints" / "last.ckpt"
    return last.stat().st_mtime if last.exists() else 0.0
