import os
import resource
import subprocess

import pytest
import torch

from ndeflow.training.checkpoints import CheckpointError, checksum_file, read_checkpoint
from ndeflow.training.saver import AtomicIO


def save(path, value, **identity):
    AtomicIO({"config": "x: 1\n", **identity}).save_checkpoint({"value": value, "w": torch.arange(1000.0)}, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints" / "last.ckpt"


def test_a_checkpoint_comes_back_with_its_identity(path):
    save(path, 1)
    save(path, 2)
    found = read_checkpoint(path)
    assert found["value"] == 2
    assert found["ndeflow"] == {"format": 1, "config": "x: 1\n"}
    assert torch.equal(found["w"], torch.arange(1000.0))
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_the_checksum_file_is_read_by_sha256sum(path):
    save(path, 1)
    done = subprocess.run(["sha256sum", "--check", "last.ckpt.sha256"], cwd=path.parent, capture_output=True)
    assert done.returncode == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("second", range(4))
@pytest.mark.parametrize("first", range(4))
def test_dying_between_any_two_renames_leaves_a_readable_checkpoint(path, monkeypatch, first, second):
    """Two saves in a row die before their n-th rename (3: not at all), as if killed: nothing is tidied up."""
    replace, unlink = os.replace, os.unlink
    save(path, 0)
    allowed = {0}
    for value, renames in ((1, first), (2, second)):
        left = [renames]

        def dying(source, target, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr("os.replace", dying)
        monkeypatch.setattr("os.unlink", lambda *a, **k: None)
        try:
            save(path, value)
        except Killed:
            pass
        monkeypatch.setattr("os.replace", replace)
        monkeypatch.setattr("os.unlink", unlink)
        allowed = {value} if renames >= 2 else allowed
        assert {read_checkpoint(path)["value"]} == allowed
    save(path, 3)
    assert len(checksum_file(path).read_text().splitlines()) == 1


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "tail missing": content[:-30],
        "empty": b"",
        "garbage": b"not a checkpoint at all",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }


@pytest.mark.parametrize("how", ["truncated", "tail missing", "empty", "garbage", "flipped"])
def test_damage_is_told_in_one_line(path, how):
    save(path, 1)
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(CheckpointError, match="damaged file: .*last.ckpt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncated", "tail missing", "empty", "garbage"])
def test_damage_is_told_without_a_checksum_too(path, how):
    save(path, 1)
    path.write_bytes(damaged(path.read_bytes())[how])
    checksum_file(path).unlink()
    with pytest.raises(CheckpointError, match="can not be read: .*last.ckpt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(path):
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="another program's"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="another program's"):
        read_checkpoint(path)
    torch.save({"ndeflow": {"format": 2}}, path)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, got 2"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="found no file"):
        read_checkpoint(path.with_name("other.ckpt"))


class Anything:
    """Code that a checkpoint must not be able to name."""


def test_nothing_but_plain_values_is_loaded(path):
    save(path, Anything())
    with pytest.raises(CheckpointError, match="can not be read"):
        read_checkpoint(path)


def test_a_full_disk_loses_nothing(path, monkeypatch):
    save(path, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(path, 2)
    assert read_checkpoint(path)["value"] == 1
    assert not list(path.parent.glob("*.tmp"))


def test_removing_takes_the_checksum_along(path):
    save(path, 1)
    AtomicIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_may_not_grow_is_an_os_error(path):
    save(path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(path, torch.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_checkpoint(path)["value"] == 1
