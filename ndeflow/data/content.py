"""The content of a data file, unpacked and decoded; a damaged one is refused by name."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GZIP = b"\x1f\x8b"


def text(path: Path) -> str:
    """UTF-8, with or without a byte-order mark, maybe compressed with gzip. Raises ValueError naming the first line."""
    content = unpacked(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line}: not a UTF-8 text file ({error.reason}); save it in UTF-8") from None


def unpacked(path: Path) -> bytes:
    """The bytes of a file, decompressed where it is compressed with gzip. Raises ValueError where it is cut off."""
    content = path.read_bytes()
    with whole(path):
        return gzip.decompress(content) if content[:2] == GZIP else content


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Inside, what a library says of damaged compressed content is a ValueError with the file's name and the cure."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected a whole file, got a damaged one ({error}); fetch it anew") from None
