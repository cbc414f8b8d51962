"""Images from IDX files and archives: what is read, how it is divided, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ndeflow.data import Images, MissingData
from ndeflow.data.images import read_idx


def idx(array: np.ndarray) -> bytes:
    """The array of bytes in the IDX format."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def drawn(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, size=(rows, 4, 3), dtype=np.uint8)
    return images, np.arange(rows, dtype=np.uint8) % 5


def write_pair(folder: Path, part: str, images: np.ndarray, labels: np.ndarray, suffix: str = "") -> None:
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_as_they_were_written_in_the_given_split(tmp_path: Path, suffix: str) -> None:
    train, test = drawn(60, 0), drawn(20, 1)
    write_pair(tmp_path, "train", *train, suffix)
    write_pair(tmp_path, "t10k", *test, suffix)
    data = Images(root=tmp_path)
    assert len(data.train.index) + len(data.val.index) == 60 and len(data.val.index) == 9
    expected = torch.from_numpy(test[0].reshape(20, 1, 12)).float() / 255
    assert torch.equal(data.test.ys, expected) and data.test.target is not None
    assert data.test.target.tolist() == test[1].tolist() and data.sizes["classes"] == 5 and data.sizes["channels"] == 12


def test_archives_of_two_parts_and_of_one(tmp_path: Path) -> None:
    train, test = drawn(60, 0), drawn(20, 1)
    np.savez(tmp_path / "mnist.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    assert len(Images(root=tmp_path).test.index) == 20
    one = tmp_path / "one.npz"
    np.savez(one, images=train[0], labels=train[1].astype(np.int64))
    data, other = Images(root=one), Images(root=one, split_seed=1)
    assert [len(part.index) for part in (data.train, data.val, data.test)] == [42, 9, 9]
    assert torch.equal(Images(root=one).test.ys, data.test.ys) and not torch.equal(data.test.ys, other.test.ys)
    together = torch.cat([part.ys for part in (data.train, data.val, data.test)]).double().sum() * 255
    assert float(together) == pytest.approx(float(train[0].astype(float).sum()), rel=1e-6)


def test_what_is_not_there_is_named_with_a_line_that_installs_it(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", *drawn(10, 0))
    with pytest.raises(
        MissingData, match="no t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte .*set data.root, or run: "
    ):
        Images(root=tmp_path).arrays()
    with pytest.raises(MissingData, match="set data.root"):
        Images(root=tmp_path / "none").arrays()


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "file", idx(drawn(4, 0)[0])
    for content, reason in (
        (b"", "expected an IDX file"),
        (b"text of another kind", "expected an IDX file"),
        (bytes((0, 0, 13, 1)) + whole[4:], "unsigned bytes"),
        (whole[:-1], "expected .* bytes of data, got 47"),
        (gzip.compress(whole)[:-9], "expected a whole file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_idx(path)
    archive = tmp_path / "x.npz"
    np.savez(archive, pictures=drawn(4, 0)[0])
    with pytest.raises(ValueError, match="expected the arrays x_train"):
        Images(root=archive).arrays()
    np.savez_compressed(archive, images=drawn(400, 0)[0], labels=np.zeros(400, dtype=np.uint8))
    content = archive.read_bytes()
    for damaged in (content[:50], b"", idx(drawn(4, 0)[0]), content[:200] + bytes(200) + content[400:]):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x.npz: expected .*fetch it anew"):
            Images(root=archive).arrays()
    with archive.open("wb") as file:
        np.save(file, drawn(4, 0)[0])
    with pytest.raises(ValueError, match=r"x.npz: expected an .npz"):
        Images(root=archive).arrays()
    np.savez(archive, images=drawn(4, 0)[0], labels=np.zeros(5, dtype=np.int64))
    with pytest.raises(ValueError, match="x.npz: .*as many labels"):
        Images(root=archive).series()


@pytest.mark.parametrize("labels", [["a", "b", "c", "d"], [0.0, 0.5, 1.0, 1.5], [0.0, 1.0, float("nan"), 1.0]])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path, labels: list[object]) -> None:
    np.savez(tmp_path / "x.npz", images=drawn(4, 0)[0], labels=np.array(labels))
    with pytest.raises(ValueError, match="expected whole numbers as labels, got ('a'|0.5|nan)"):
        Images(root=tmp_path).series()
