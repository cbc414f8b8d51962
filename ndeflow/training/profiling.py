"""Lightning's hooks without its profiler, which costs more than most of what they do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING = nullcontext()


@final
class Unprofiled(PassThroughProfiler):
    """Measures nothing: one context manager for all of the hundred or so hooks of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _NOTHING
