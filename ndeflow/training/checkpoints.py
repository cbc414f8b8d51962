"""Checkpoint files: whole at every moment, verified when read, plain values and tensors only.

Beside NAME.ckpt lies NAME.ckpt.sha256 (`sha256sum --check` reads it). To replace a checkpoint, three files are renamed
in turn: a checksum file that names the old content and the new, the checkpoint, a checksum file that names the new
content only. A process that dies in between leaves a checkpoint whose checksum is named.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ndeflow.training.files import replace_atomically, write_atomically

KEY = "ndeflow"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or of a format that this version does not know."""


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint and its checksum; see the module's docstring."""
    sums, digest = checksum_file(path), hashlib.sha256()
    name = path.name

    def announce() -> None:
        lines = [*(_lines(sums) if path.exists() else []), f"{digest.hexdigest()}  {name}.tmp"]
        write_atomically(sums, "".join(f"{line}\n" for line in lines).encode())

    replace_atomically(path, lambda file: _Hashed(file, digest).save(dict(checkpoint)), before=announce)
    write_atomically(sums, f"{digest.hexdigest()}  {name}\n".encode())


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a run's checkpoint, on the CPU, loaded with weights_only=True.

    Raises CheckpointError, one line, when there is none, when its content does not match the checksum beside it, when
    it can not be read, or when it is not of this package or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint, found no file {path}; was the run stopped before its first one?")
    content = path.read_bytes()
    _verify(path, content)
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"expected a checkpoint, found a file that can not be read: {path} ({len(content)} bytes; "
            f"{reason[0][:80] if reason else type(error).__name__}); {_CURE}"
        ) from error
    _check_identity(path, checkpoint)
    return checkpoint


def checksum_file(path: Path) -> Path:
    """Where the checksum of a checkpoint lies."""
    return path.with_name(path.name + ".sha256")


_CURE = "use another checkpoint of the run, or train again"


class _Hashed:
    """A file to write to, whose content is hashed on the way."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file, self.digest = file, digest
        self.error: OSError | None = None

    def save(self, content: dict[str, Any]) -> None:
        try:
            torch.save(content, cast(BinaryIO, self))
        except RuntimeError as failure:
            raise (self.error or failure) from None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # which torch would turn into a RuntimeError about positions
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _lines(sums: Path) -> list[str]:
    return sums.read_text(errors="replace").splitlines() if sums.exists() else []


def _verify(path: Path, content: bytes) -> None:
    """A file without a checksum beside it (copied alone) is not refused: loading it will tell."""
    known = [line.split()[0] for line in _lines(checksum_file(path)) if line.strip()]
    if known and hashlib.sha256(content).hexdigest() not in known:
        raise CheckpointError(
            f"expected the content that {checksum_file(path).name} names, found a damaged file: {path} "
            f"({len(content)} bytes); {_CURE}"
        )


def _check_identity(path: Path, checkpoint: Any) -> None:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        raise CheckpointError(f"expected a checkpoint of ndeflow, found another program's: {path}; name a run's own")
    found = checkpoint[KEY].get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"expected checkpoint format {FORMAT}, got {found}: {path}; use the version that wrote it"
        )
