"""Run folders: where a run lies, and what is written there about it. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndeflow.training.files import write_atomically

if TYPE_CHECKING:
    from ndeflow.data import DataModule
    from ndeflow.tasks import Task

FAILED, MISUSED, MISSING = 1, 2, 3
"""Exit statuses of the commands: work that failed, a request not understood, data that are absent."""

_FOLDER = "NDEFLOW_RUN_DIR"  # tells the other processes of a parallel run which folder the first one made
_LOCK = ".lock"
_held: list[int] = []  # the descriptor of the lock, if any
_WIDTH = 400  # characters of a message


@dataclass(frozen=True)
class Run:
    """A run about to be trained: where it lies, its resolved configuration, its data and its task.

    last: the checkpoint to go on from, if any.
    """

    folder: Path
    config: dict[str, Any]
    data: DataModule
    task: Task
    last: Path | None = None


def first_process() -> bool:
    """False in the other processes of a parallel run."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def say(message: object, status: int) -> int:
    """One line on standard error, by the first process; gives `status` back."""
    if first_process():
        line = " ".join(str(message).split())
        print(f"ndeflow: {line if len(line) <= _WIDTH else line[:_WIDTH] + ' ...'}", file=sys.stderr)
    return status


def keep_compiled() -> None:
    """Let compiled code lie in the user's cache folder, for later runs too, unless TORCHINDUCTOR_CACHE_DIR is set.

    Where that folder cannot be made, it stays in a temporary one.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    with suppress(OSError, RuntimeError):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ndeflow" / "inductor"
        cache.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def new_folder(name: str, given: str | None) -> Path:
    """A new folder: `given`, or runs/NAME/DATE_TIME, with -1, -2, ... where another run began in the same second.

    The other processes of a parallel run get the folder of the first. Raises ValueError where it cannot be made, or
    `given` holds a run already.
    """
    if not first_process():
        return Path(os.environ.get(_FOLDER) or given or "runs")
    folder = _claimed(Path(given).expanduser()) if given else _stamped(Path("runs") / name)
    share(folder)
    return folder


def share(folder: Path) -> None:
    """Take the folder for this process, and tell those that it will start where the run lies.

    Raises ValueError where another process trains there. The system lets go when this process ends, however it ends.
    """
    if first_process():
        _lock(folder)
    os.environ[_FOLDER] = str(folder)


def _lock(folder: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    _release()
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"another process is training in {folder}; wait until it ends, or stop it") from error
    _held.append(descriptor)  # locked as long as it is open


def _release() -> None:
    while _held:
        os.close(_held.pop())


def abandon(folder: Path) -> None:
    """Remove a new folder in which nothing was written, and those around it that it leaves empty."""
    if first_process():
        _release()
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)
            for empty in (folder, *folder.parents[:2]):
                empty.rmdir()


def _claimed(folder: Path) -> Path:
    if (folder / "config.yaml").exists():
        raise ValueError(f"expected a new run folder, got one that holds a run; go on with it: resume={folder}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a run folder, got a file: {folder}; give another with run_dir=")
    return _made(folder, exist_ok=True)


def _stamped(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        with suppress(FileExistsError):
            return _made(parent / (f"{stamp}-{attempt}" if attempt else stamp), exist_ok=False)
    raise ValueError(f"found no free name for a run folder like {parent / stamp}; give one with run_dir=")


def _made(folder: Path, *, exist_ok: bool) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"cannot write to the run folder {folder} ({reason}); give another with run_dir=") from error
    return folder


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values, as a whole; numbers that are not finite, which JSON does not have, as null."""
    write_atomically(path, (json.dumps(finite(values), indent=2, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Plain values with None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        self.facts = {**facts, "began": self.before.get("began", time.strftime("%Y-%m-%dT%H:%M:%S%z"))}

    def write(self, status: str, **facts: Any) -> None:
        """status: running, finished, interrupted or failed. Seconds of earlier parts of a resumed run are added."""
        seconds = float(self.before.get("seconds", 0.0)) + time.time() - self.began
        write_json(self.path, {**self.facts, **facts, "status": status, "seconds": round(seconds, 2)})
