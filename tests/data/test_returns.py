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


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("abc", "'abc' is not a number"),
        ("", "expected a number, got none"),
        ("-1", "expected a positive price, got -1"),
    ],
)
def test_a_cell_that_is_no_price_is_refused_by_line(tmp_path: Path, cell: str, message: str) -> None:
    path = prices(tmp_path)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[7] = f"1/4/1999,0.0,{cell}"
    path.write_text("\n".join(lines))  # not compressed
    with pytest.raises(ValueError, match=f"prices.csv.gz: line 8, column 'Adj Close': {message}"):
        Returns(path=path).setup()


def test_a_file_that_is_cut_off_or_too_short(tmp_path: Path) -> None:
    path = prices(tmp_path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="expected a whole file, got a damaged one .*; fetch it anew"):
        Returns(path=path).setup()
    with pytest.raises(ValueError, match="expected at least 533 prices, got 532; give a longer record"):
        Returns(path=prices(tmp_path, 532), days=32).setup()
    assert len(Returns(path=prices(tmp_path, 533), days=32).test.index) == 1


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
