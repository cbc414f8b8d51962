"""Two processes that train together stop together, and go on as if they had not stopped."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import torch

from tests.training import tiny_training as tiny


def test_stopped_and_resumed_in_two_processes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait(90) == 0
    process = start(cut)
    while not (cut / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # to the first of the two alone
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (cut / "final.pt").exists()
    assert start(cut).wait(90) == 0
    expected = (torch.load(whole / "final.pt"), tiny.reproducible(whole), tiny.best(whole))
    tiny.assert_same_run(cut, torch.load(cut / "final.pt"), expected)


def start(run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen([*tiny.COMMAND, str(run_dir), "3", "0.03", "2"], cwd=tiny.ROOT)
