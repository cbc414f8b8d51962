"""Ctrl-C and SIGTERM as one exception. Imports nothing heavy: a command can call on it first of all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, final

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], Any]


@final
class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception: no handler of errors shall swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells report it: 130 or 143."""
        return 128 + self.signum


def raise_on_signals() -> None:
    """From now on SIGINT and SIGTERM raise `Interrupted` wherever the main thread is."""
    handle_signals(_interrupt)


def handle_signals(handler: Handler) -> None:
    """Give SIGINT and SIGTERM to `handler`; without effect outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)
