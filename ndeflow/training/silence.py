"""Lightning without its messages: a run prints what its command prints."""

from __future__ import annotations

import logging
import warnings

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_WARNINGS = (
    (r".*LeafSpec.*", FutureWarning),  # of Lightning's own making, with torch 2.13
    (r".*Checkpoint directory .* exists and is not empty.*", UserWarning),  # every resumed run
    (r".*does not have many workers.*", UserWarning),  # data in memory need none
    (r".*sync_dist=True.*", UserWarning),  # metrics are reduced before they are logged
)


def silence() -> None:
    """Hide Lightning's notices, and its warnings that a user can do nothing about; others stay."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
