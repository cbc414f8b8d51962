"""Grey images of classes from the user's own folder: IDX files, or one .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack, final

import numpy as np
import torch

from ndeflow.contracts import Series
from ndeflow.data.base import DataModule, OtherOptions
from ndeflow.data.content import unpacked, whole
from ndeflow.data.notices import MissingData

INSTALL = (
    "curl --create-dirs -o data/mnist/mnist.npz https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
)
UNSIGNED_BYTE, AXES = 8, 3  # of the IDX format
PAIRS = (("x_train", "y_train", "x_test", "y_test"), ("images", "labels"))


@final
class Images(DataModule):
    """Images of one size, (N, H, W) bytes, as vectors of H W numbers between 0 and 1 that are seen once, and classes.

    root: a folder with the four IDX files (LeCun, Cortes, Burges 1998) train-images-idx3-ubyte, train-labels-idx1-ubyte
    and those of t10k, with or without .gz, or with an .npz; or the .npz itself, of arrays x_train, y_train, x_test,
    y_test, or images and labels. Of one set without a test part, 70/15/15 % by class, drawn with `split_seed`, are for
    training, validation and testing; else 15 % of the training images are for validation. Raises MissingData with a
    line that installs MNIST if nothing is there, ValueError for files of another kind.
    """

    def __init__(self, *, root: str | Path = "data/mnist", **options: Unpack[OtherOptions]) -> None:
        super().__init__(**options)
        self.root = Path(root)

    def series(self) -> Series | Mapping[str, Series]:
        arrays = self.arrays()
        parts = [_series(images, labels, self.root) for images, labels in zip(arrays[::2], arrays[1::2], strict=True)]
        return dict(zip(("train", "test"), parts, strict=True)) if len(parts) == 2 else parts[0]

    def arrays(self) -> list[np.ndarray]:
        """Images (N, H, W) and labels (N,), of the training and the test part, or of one set."""
        archives = [self.root] if self.root.is_file() else sorted(self.root.glob("*.npz"))
        if archives:
            return _npz(archives[0])
        names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        found = [_existing(self.root, name) for name in names]
        absent = [name for name, path in zip(names, found, strict=True) if path is None]
        if absent:
            raise MissingData(f"no .npz and no {', '.join(absent)} in {self.root}; set data.root, or run: {INSTALL}")
        return [read_idx(path) for path in found if path is not None]


def read_idx(path: str | Path) -> np.ndarray:
    """The array of bytes in an IDX file, which may be compressed with gzip. Raises ValueError for another file."""
    path = Path(path)
    content = unpacked(path)
    axes = content[AXES] if len(content) > AXES else 0
    start = 4 + 4 * axes
    if content[:3] != bytes((0, 0, UNSIGNED_BYTE)) or len(content) < start:
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes, got one that begins with {content[:4]!r}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, offset=4))
    if len(content) != start + int(np.prod(shape)):
        raise ValueError(f"{path}: expected {shape} bytes of data, got {len(content) - start}; fetch it anew")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _existing(root: Path, name: str) -> Path | None:
    """The file of that name, also compressed, also with a dot in place of the last hyphen but one."""
    names = (name, name.replace("-idx", ".idx"))
    return next((p for n in names for p in (root / n, root / f"{n}.gz") if p.is_file()), None)


def _npz(path: Path) -> list[np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected an .npz, as numpy.savez writes it, got another file; fetch it anew")
    with whole(path), np.load(path, allow_pickle=False) as archive:
        names, read = archive.files, {name for keys in PAIRS for name in keys}
        arrays = {name: archive[name] for name in names if name in read}
    keys = next((keys for keys in PAIRS if set(keys) <= set(arrays)), None)
    if keys is None:
        known = " or ".join(", ".join(keys) for keys in PAIRS)
        raise ValueError(f"{path}: expected the arrays {known}, got {', '.join(names)}")
    return [arrays[key] for key in keys]


def _series(images: np.ndarray, labels: np.ndarray, where: Path) -> Series:
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{where}: expected images (N, H, W) of bytes and as many labels, got {images.shape} of {images.dtype} and "
            f"{labels.shape}"
        )
    wrong = [label for label in labels.tolist() if not isinstance(label, int | float) or label % 1]
    if wrong:
        raise ValueError(f"{where}: expected whole numbers as labels, got {wrong[0]!r}")
    values = torch.from_numpy(images.reshape(len(images), 1, -1).astype(np.float32) / 255)
    return Series(torch.zeros(len(values), 1), values, target=torch.from_numpy(labels.astype(np.int64)))
