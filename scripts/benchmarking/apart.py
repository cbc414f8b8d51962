"""A call in a process of its own, with which all ends that it started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def apart(call: Callable[..., T], *args: Any) -> T:
    """The call's result, from a new process, which leads a group that is killed however this ends.

    Raises SystemExit where the process ends without a result; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, call, args), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        there.close()
        result = here.recv()
        process.join()  # it tidies up
        return result
    except EOFError:
        sys.exit(1)
    finally:
        with suppress(ProcessLookupError):  # it was not yet a leader, and has started nothing
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _answer(there: Connection, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)
    there.send(call(*args))
