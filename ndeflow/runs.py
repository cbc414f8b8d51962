"""Run folders: where a run lies, what is written there about it, and how it is found again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ndeflow.training.files import write_atomically

CHILD = "NDEFLOW_RUN_DIR"  # tells the other processes of a parallel run which folder the first one made


def new_folder(name: str, given: str | None) -> Path:
    """A new folder: `given`, or runs/NAME/DATE_TIME, with -1, -2, ... where another run began in the same second.

    Raises ValueError where it cannot be made, or `given` holds a run already.
    """
    if CHILD in os.environ:
        return Path(os.environ[CHILD])
    folder = _claimed(Path(given)) if given else _stamped(Path("runs") / name)
    os.environ[CHILD] = str(folder)
    return folder


def _claimed(folder: Path) -> Path:
    if (folder / "config.yaml").exists():
        raise ValueError(f"expected a new run folder, got one that holds a run: {folder}; continue it with resume={folder}")
    return _made(folder, exist_ok=True)


def _stamped(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        folder = parent / (f"{stamp}-{attempt}" if attempt else stamp)
        if not folder.exists():
            try:
                return _made(folder, exist_ok=False)
            except FileExistsError:
                continue
    raise ValueError(f"found no free name for a run folder like {parent / stamp}")


def _made(folder: Path, *, exist_ok: bool) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(f"cannot write to the run folder {folder} ({error.strerror}); give another with run_dir=") from error
    return folder


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values, as a whole."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


class Record:
    """run.json: what a run is and how it stands."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.path, self.began = folder / "run.json", time.time()
        self.before = read_json(self.path)
        self.facts = {**self.before, **facts}

    def write(self, status: str, **facts: Any) -> None:
        """status: running, finished, interrupted or failed. Seconds of earlier parts of a resumed run are added."""
        seconds = float(self.before.get("seconds", 0.0)) + time.time() - self.began
        write_json(self.path, {**self.facts, **facts, "status": status, "seconds": round(seconds, 2)})
