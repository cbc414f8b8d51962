"""Handwritten digits: what is read, how it is divided, and what is wrong with another file."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ndeflow.data import Digits, MissingData


def test_they_are_those_of_scikit_learn() -> None:
    values, known = Digits().values(), load_digits()
    assert np.array_equal(values[:, :64], known.data) and np.array_equal(values[:, 64], known.target)


def test_parts_are_disjoint_of_their_sizes_and_drawn_by_the_split_seed() -> None:
    data, again, other = Digits(), Digits(), Digits(split_seed=1)
    parts = data.series()
    train, test = parts["train"], parts["test"]
    assert len(test.ys) == 500 and len(train.ys) == 1297
    assert test.ys.shape[1:] == (1, 64) and 0 <= float(test.ys.min()) and float(test.ys.max()) == 1
    assert torch.equal(again.series()["test"].ys, test.ys)
    assert not torch.equal(other.series()["test"].ys, test.ys)
    together = torch.cat([train.ys, test.ys]).flatten(1).sum(dim=0) * 16
    assert torch.allclose(together, torch.from_numpy(load_digits().data).sum(dim=0))
    assert data.sizes["classes"] == 10 and data.sizes["channels"] == 64


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="set data.path, or run: pip install scikit-learn"):
        Digits(path=tmp_path / "none.csv.gz").values()
    path = tmp_path / "digits.csv.gz"
    for content, reason in ((b"1,2\n3,4\n", "expected over 500 rows"), (b"a,b\n", "expected numbers")):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=reason):
            Digits(path=path).values()
    path.write_text("plain")
    with pytest.raises(ValueError, match="compressed"):
        Digits(path=path).values()
