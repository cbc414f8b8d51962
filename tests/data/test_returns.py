"""Windows of a price's path."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from ndeflow.data import MissingData, Returns


def prices(folder: Path, count: int = 1001, column: str = "Adj Close") -> Path:
    torch.manual_seed(0)
    values = (4 + (0.01 * torch.randn(count, dtype=torch.float64)).cumsum(0)).exp()
    lines = [f"Date,Close,{column}", *(f"1/4/1999,0.0,{value!r}" for value in values.tolist())]
    path = folder / "prices.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig")))
    return path


def test_every_third_block_of_a_year_is_for_the_test(tmp_path: Path) -> None:
    data = Returns(path=prices(tmp_path), days=20)
    returns = data.returns()
    assert len(returns) == 1000
    known = torch.cat([returns[:500], returns[750:]])
    train, test = data.blocks("train"), data.blocks("test")
    assert [len(b) for b in (*train, *test)] == [250] * 4
    torch.testing.assert_close(test[0] * known.std() + known.mean(), returns[500:750])
    torch.testing.assert_close(torch.cat(train).std(), torch.tensor(1.0, dtype=torch.float64))
    assert len(data.train.index) + len(data.val.index) == 3 * 231 and len(data.test.index) == 231


def test_a_window_is_the_sum_of_returns_since_its_first_day(tmp_path: Path) -> None:
    data = Returns(path=prices(tmp_path), days=20)
    block = data.blocks("test")[0]
    path = torch.cat([torch.zeros(1, dtype=torch.float64), block[3:23].cumsum(0)]) / 20**0.5
    torch.testing.assert_close(data.test.ys[3, :, 0].double(), path, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(data.test.ts[3], torch.linspace(0, 1, 21, dtype=data.test.ts.dtype))
    assert data.test.seen[:, 0].all() and not data.test.seen[:, 1:].any()


def test_blocks_shorter_than_a_window_are_left_out(tmp_path: Path) -> None:
    assert [len(b) for b in Returns(path=prices(tmp_path, 771), days=32).blocks("train")] == [250, 250]
    assert [len(b) for b in Returns(path=prices(tmp_path, 791), days=32).blocks("train")] == [250, 250, 40]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected data.days from 2 to 250, got 1"):
        Returns(days=1)
    with pytest.raises(ValueError, match="expected a column 'Adj Close'"):
        Returns(path=prices(tmp_path, column="Open")).setup()
    with pytest.raises(MissingData, match="run: pip install --no-deps arch==8.0.0"):
        Returns(path=tmp_path / "no.csv.gz").setup()
    monkeypatch.setattr("ndeflow.data.notices.find_spec", lambda name: None)
    with pytest.raises(MissingData, match="run: pip install --no-deps arch==8.0.0"):
        Returns().setup()
