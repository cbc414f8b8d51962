"""Archive files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ndeflow.data import Archive, Hidden, MissingData
from ndeflow.data.archives import read_ts

SMALL = """# a comment
@problemName Small
@timestamps false
@classLabel true b10 b2
@data

1,2,?,4:10,NaN,30,40:b10
5,6:50,60:b2
"""


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_unequal_lengths_missing_values_and_labels(tmp_path: Path) -> None:
    series = read_ts(written(tmp_path, "a.ts", SMALL))
    assert series.target == ["b10", "b2"] and [t.tolist() for t in series.ts] == [[0, 1, 2, 3], [0, 1]]
    nan = float("nan")
    expected = torch.tensor([[1, 10], [2, nan], [nan, 30], [4, 40]], dtype=torch.float64)
    torch.testing.assert_close(series.ys[0], expected, equal_nan=True)
    assert series.ys[1].tolist() == [[5, 50], [6, 60]]


def test_numbers_to_regress_and_no_target(tmp_path: Path) -> None:
    series = read_ts(written(tmp_path, "a.ts", "@targetlabel true\n@data\n1,2:0.5\n3,4:2\n"))
    assert series.target == [0.5, 2.0] and series.ys[0].tolist() == [[1], [2]]
    series = read_ts(written(tmp_path, "b.ts", "@classLabel false\n@data\n1,2:5,6\n"))
    assert series.target is None and series.ys[0].tolist() == [[1, 5], [2, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@classLabel true a\n1,2:a\n", "line 2: expected @data before the first case"),
        ("@classLabel true a\n@data\n", "expected at least one case after @data"),
        ("@classLabel true a\n@data\n1,2:a\n1,2:3,4:a\n", "line 4: expected 1 channels, got 2"),
        ("@classLabel true a\n@data\n1,2:3:a\n", r"line 3: expected channels of one length, got \[2, 1\]"),
        ("@timestamps true\n@classLabel true a\n@data\n(0,1),(1,2):a\n", "line 4: .*time stamps are not read"),
        ("@classLabel\n@data\n1,2:a\n", "line 1: expected @classLabel true or @classLabel false, got no value"),
        ("@targetlabel true\n@data\n1,2:1\n1,2:x\n", "line 4: expected a finite number to regress .*, got 'x'"),
        ("@targetlabel true\n@data\n1,2:inf\n", "a.ts: line 3: expected a finite number to regress .*, got 'inf'"),
        ("@classLabel true a\n@data\na\n", "line 3: expected channels and a target"),
    ],
)
def test_files_to_refuse(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ts(written(tmp_path, "a.ts", text))


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes("# gut\n# größe\n@data\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.ts: line 2: not a UTF-8 text file"):
        read_ts(path)


def cases(rows: int, offset: float) -> str:
    body = "".join(f"{i + offset},{i * 2},{i % 3}:{'ab'[i % 2]}\n" for i in range(rows))
    return f"@classLabel true a b\n@data\n{body}"


@pytest.mark.parametrize("folder", [".", "Small"])
def test_a_set_in_a_folder(tmp_path: Path, folder: str) -> None:
    written(tmp_path / folder, "Small_TRAIN.ts", cases(20, 0.0))
    written(tmp_path / folder, "Small_TEST.ts", cases(10, 0.5))
    data = Archive("Small", tmp_path)
    assert [len(batch.index) for batch in (data.train, data.val, data.test)] == [17, 3, 10]
    assert data.test.index.tolist() == list(range(20, 30))
    torch.testing.assert_close(data.spec.to_data_units(data.test.ys)[3, :, 0], torch.tensor([3.5, 6.0, 0.0]))


def test_an_absent_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingData, match="no Other_TRAIN.ts in .*run: pip install --no-deps aeon==1.6.0"):
        Archive("Other", tmp_path).setup()
    written(tmp_path, "Half_TRAIN.ts", cases(4, 0.0))
    with pytest.raises(MissingData, match="Half_TEST.ts beside"):
        Archive("Half", tmp_path).setup()
    monkeypatch.setattr("ndeflow.data.notices.find_spec", lambda name: None)
    with pytest.raises(MissingData, match="run: pip install --no-deps aeon==1.6.0"):
        Archive("JapaneseVowels").setup()


def test_japanese_vowels_from_the_installed_package() -> None:
    data = Archive("JapaneseVowels")
    assert data.sizes == {"channels": 12, "classes": 9, "outputs": 9, "inputs": 0, "length": 29, "train_rows": 229}
    assert len(data.val.index) == 41 and len(data.test.index) == 370
    assert data.spec.classes == tuple("123456789")
    assert data.train.target is not None and data.val.target is not None and data.test.target is not None
    per_class = torch.bincount(torch.cat([data.train.target, data.val.target]))
    assert per_class.tolist() == [30] * 9
    assert set(torch.bincount(data.val.target).tolist()) <= {4, 5}
    assert torch.bincount(data.test.target).max() == 88 and torch.bincount(data.test.target).min() == 24
    lengths = data.test.mask[..., 0].sum(dim=1)
    assert int(lengths.min()) == 7 and int(lengths.max()) == 29


@pytest.mark.parametrize("drop", [0.3, 0.5, 0.7])
def test_japanese_vowels_thinned_per_channel(drop: float) -> None:
    full, thin = Archive("JapaneseVowels"), Archive("JapaneseVowels", drop=drop)
    assert float(thin.test.mask.sum() / full.test.mask.sum()) == pytest.approx(1 - drop, abs=0.01)
    assert thin.test.target is not None and full.test.target is not None and thin.test.target.equal(full.test.target)


def test_linear_interpolation_is_the_reference_of_hidden_values(tmp_path: Path) -> None:
    lines = "".join(f"{','.join(str(k * slope) for k in range(9))}:a\n" for slope in (1, 2, 3, 4))
    for split in ("TRAIN", "TEST"):
        written(tmp_path, f"Lines_{split}.ts", f"@classLabel true a\n@data\n{lines}")
    hidden = Archive("Lines", tmp_path, seen=Hidden(0.5)).references()
    assert set(hidden) == {"reference/linear_rmse", "reference/linear_log_likelihood"}
    assert Archive("Lines", tmp_path).references() == {}
