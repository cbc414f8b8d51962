"""The long format: what is read from a file, and a new file read for a trained model."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from ndeflow.data import Columns, Files, First, read_for
from ndeflow.data.long import read_long

HEADER = "id,time,bili,albumin,age,target,split"
LINES = [
    "p1,0,14.5,2.60,58,1,train",
    "p1,192,21.3,,58,,train",
    "p2,10,1.1,4.14,56,0,train",
    "p2,192,0.8,3.60,56,0,train",
    "p2,374,NA,3.0,56,0,train",
    "p3,0,1.4,3.48,70,10,val",
    "p3,182,1.1,3.53,70,10,val",
    "p4,0,1.8,2.54,54,10,test",
    "p4,188,1.6,2.88,54,10,test",
    "p5,0,1.8,2.54,54,10,train",
    "p5,188,1.6,2.88,54,10,train",
]


def clinic(folder: Path, lines: list[str] = LINES, header: str = HEADER, encoding: str = "utf-8") -> Path:
    path = folder / "clinic.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def test_values_masks_targets_and_statics(tmp_path: Path) -> None:
    data = Files(clinic(tmp_path), target="target", statics=["age"], standardise=False, time_scale=2.0)
    train = data.train
    assert [data.ids[i] for i in train.index.tolist()] == ["p1", "p2", "p5"]
    assert train.ts.tolist() == [[0, 96, 96], [0, 91, 182], [0, 94, 94]]
    assert train.mask[0].tolist() == [[True, True], [True, False], [False, False]]
    assert train.mask[1].tolist() == [[True, True], [True, True], [False, True]]
    torch.testing.assert_close(train.ys[1], torch.tensor([[1.1, 4.14], [0.8, 3.6], [0.0, 3.0]]))
    assert data.spec.channels == ("bili", "albumin") and data.spec.statics == ("age",)
    assert data.spec.classes == ("0", "1", "10") and train.target is not None
    assert train.target.tolist() == [1, 0, 2]
    assert train.inputs is not None and train.inputs[:, 0].tolist() == [58, 56, 54]
    assert bool((train.seen == train.mask).all())


def test_standardised_by_the_training_ids_alone(tmp_path: Path) -> None:
    outliers = [line if not line.startswith("p4") else line.replace("2.54", "9e9") for line in LINES]
    plain, odd = (Files(clinic(tmp_path, lines), target="target", statics=["age"]) for lines in (LINES, outliers))
    assert plain.spec == odd.spec
    train = plain.train
    for channel in range(2):
        values = train.ys[..., channel][train.mask[..., channel]].double()
        assert abs(values.mean()) < 1e-6 and abs(values.std(correction=0) - 1) < 1e-6
    assert train.inputs is not None and abs(train.inputs.mean()) < 1e-6
    bili = torch.tensor([14.5, 21.3, 1.1, 0.8, 1.8, 1.6], dtype=torch.float64)
    assert plain.spec.mean[0] == pytest.approx(float(bili.mean()))
    assert plain.spec.std[0] == pytest.approx(float(bili.std(correction=0)))
    back = plain.spec.to_data_units(train.ys)
    torch.testing.assert_close(back[0, 0], torch.tensor([14.5, 2.6]))


def test_time_unit_is_the_median_training_gap(tmp_path: Path) -> None:
    assert Files(clinic(tmp_path), target="target").spec.time_scale == 182.0


def test_origin_of_each_id_or_of_the_file(tmp_path: Path) -> None:
    path = clinic(tmp_path)
    own = Files(path, target="target", time_scale=1.0)
    calendar = Files(path, target="target", time_scale=1.0, time_origin="file")
    assert own.spec.time_origin is None and own.train.ts[1].tolist() == [0, 182, 364]
    assert calendar.spec.time_origin == 0.0 and calendar.train.ts[1].tolist() == [10, 192, 374]


def test_channels_selects_and_orders(tmp_path: Path) -> None:
    data = Files(clinic(tmp_path), target="target", channels=["albumin", "bili"], standardise=False)
    torch.testing.assert_close(data.train.ys[0, 0], torch.tensor([2.6, 14.5]))
    assert "age" in Files(clinic(tmp_path), target="target").spec.channels


def test_regression_target(tmp_path: Path) -> None:
    data = Files(clinic(tmp_path), target="target", task="regression", statics=["age"], standardise=False)
    assert data.train.target is not None and data.train.target.tolist() == [[1.0], [0.0], [10.0]]
    assert data.sizes["outputs"] == 1 and data.spec.classes == () and data.spec.class_weights == ()
    halves = [line.replace(",10,", ",1.5,") for line in LINES]
    inferred = Files(clinic(tmp_path, halves), target="target", statics=["age"], standardise=False)
    assert inferred.train.target is not None and inferred.train.target.tolist() == [[1.0], [0.0], [1.5]]


def test_without_target_the_first_time_is_seen(tmp_path: Path) -> None:
    data = Files(clinic(tmp_path), channels=["bili", "albumin"])
    assert data.train.seen[:, 0].equal(data.train.mask[:, 0]) and not data.train.seen[:, 1:].any()


def test_byte_order_mark_blank_lines_and_quotes(tmp_path: Path) -> None:
    lines = [LINES[0].replace("p1", '"p1"'), "", *LINES[1:]]
    plain = Files(clinic(tmp_path), target="target").train
    marked = Files(clinic(tmp_path, lines, encoding="utf-8-sig"), target="target").train
    assert marked.ys.equal(plain.ys)


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    lines = ["", *LINES]
    lines[3] = "p2,10,text,4.14,56,0,train"
    with pytest.raises(ValueError, match="line 5, column 'bili'"):
        Files(clinic(tmp_path, lines), target="target").setup()


@pytest.mark.parametrize("first", ["2020-03-01", "2020-03-01T00:00", "2020-03-01T01:00+01:00", "20200301T000000Z"])
def test_dates_become_seconds(tmp_path: Path, first: str) -> None:
    zone = "Z" if first.endswith("Z") or "+" in first else ""
    path = clinic(tmp_path, [f"a,{first},1", f"a,2020-03-02T12:00{zone},2"], "id,time,x")
    long = read_long(path, Columns())
    assert long.kind == "date"
    assert (long.ts[0][1] - long.ts[0][0]) == 36 * 3600
    assert long.ts[0][0] == datetime.datetime(2020, 3, 1, tzinfo=datetime.UTC).timestamp()
    assert long.written == [[first, f"2020-03-02T12:00{zone}"]]


def parquet(folder: Path, columns: dict[str, object]) -> Path:
    path = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    rows = [line.split(",") for line in LINES]
    ids, ts, bili, albumin, age, target, split = zip(*rows, strict=True)
    as_float = [[None if cell in ("", "NA") else float(cell) for cell in column] for column in (bili, albumin)]
    path = parquet(tmp_path, {
        "id": list(ids), "time": list(map(int, ts)), "bili": as_float[0],
        "albumin": pyarrow.array(as_float[1], pyarrow.float32()), "age": list(map(int, age)),
        "target": [int(cell) if cell else None for cell in target], "split": list(split),
    })  # fmt: skip
    ours, theirs = (Files(p, target="target", statics=["age"]) for p in (path, clinic(tmp_path)))
    torch.testing.assert_close(ours.train.ys, theirs.train.ys)
    assert ours.train.ts.equal(theirs.train.ts) and ours.train.mask.equal(theirs.train.mask)
    assert ours.spec.classes == theirs.spec.classes and ours.ids == theirs.ids


def test_parquet_times_and_rows(tmp_path: Path) -> None:
    days = [datetime.datetime(2020, 1, day, tzinfo=datetime.UTC) for day in (1, 3)]
    long = read_long(parquet(tmp_path, {"id": [1, 1], "time": days, "x": [1.0, 2.0]}), Columns())
    assert long.kind == "date" and long.ids == ["1"] and long.ts[0][1] - long.ts[0][0] == 2 * 86400
    with pytest.raises(ValueError, match="row 2, column 'x': infinite value"):
        read_long(parquet(tmp_path, {"id": ["a", "a"], "time": [0, 1], "x": [1.0, float("inf")]}), Columns())
    with pytest.raises(ValueError, match="row 1: empty id"):
        read_long(parquet(tmp_path, {"id": [None, "a"], "time": [0, 1], "x": [1.0, 2.0]}), Columns())
    (tmp_path / "text.parquet").write_text("id,time,x\n")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_long(tmp_path / "text.parquet", Columns())


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, {"id": ["a", "a"], "time": [0, 1], "x": [1.0, 2.0]})
    monkeypatch.setattr("ndeflow.data.table.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        read_long(path, Columns())


def test_a_large_file_is_read_in_time(tmp_path: Path) -> None:
    lines = [
        f"p{i},{t},{(i * 7 + t) % 13 / 7},{'' if t % 3 else t / 9},{i % 3}" for i in range(1000) for t in range(100)
    ]
    path = clinic(tmp_path, lines, "id,time,x,y,target")
    start = time.process_time()
    Files(path, target="target").setup()
    assert time.process_time() - start < 3.0


def trained(folder: Path, **options: object) -> Files:
    return Files(clinic(folder), target="target", statics=["age"], **options)  # pyright: ignore[reportArgumentType]


def test_new_file_in_the_models_units(tmp_path: Path) -> None:
    spec = trained(tmp_path).spec
    lines = ["z,56,1000,4.0,2.0", "z,56,1364,,", "y,58,5,3.0,1.0", "y,58,187,3.1,1.1"]
    new = read_for(spec, clinic(tmp_path, lines, "id,age,time,albumin,bili"))
    assert new.ids == ["z", "y"] and new.times == [["1000", "1364"], ["5", "187"]]
    assert new.batch.ts.tolist() == [[0, 2], [0, 1]]
    torch.testing.assert_close(spec.to_data_units(new.batch.ys)[0, 0], torch.tensor([2.0, 4.0]))
    assert new.batch.mask[0].tolist() == [[True, True], [False, False]]
    assert new.batch.target is None and new.batch.inputs is not None
    mean, std = spec.statics_mean[0], spec.statics_std[0]
    torch.testing.assert_close(new.batch.inputs[:, 0], torch.tensor([(56 - mean) / std, (58 - mean) / std]))


def test_new_file_of_the_training_data_is_the_training_batch(tmp_path: Path) -> None:
    data = trained(tmp_path, time_origin="file", seen=First(1))
    new = read_for(data.spec, data.path, data.columns, seen=First(1)).batch
    rows = [0, 1, 4]  # p1, p2, p5: the training ids in the order of the file
    assert new.ts[rows].equal(data.train.ts) and new.ys[rows].equal(data.train.ys)
    assert new.seen[rows].equal(data.train.seen) and new.target is not None and data.train.target is not None
    assert new.target[rows].equal(data.train.target)


def test_new_file_without_targets_or_with_unknown_ones(tmp_path: Path) -> None:
    data = trained(tmp_path)
    data.setup()
    unlabelled = clinic(tmp_path, ["z,0,2,4,56", "z,10,2,4,56"], "id,time,bili,albumin,age")
    assert read_for(data.spec, unlabelled, data.columns).batch.target is None
    unknown = clinic(tmp_path, ["z,0,2,4,56,7", "z,10,2,4,56,7"], "id,time,bili,albumin,age,target")
    with pytest.raises(ValueError, match=r"class\(es\) \['7'\] are unknown to the model; it has \['0', '1', '10'\]"):
        read_for(data.spec, unknown, data.columns)


def test_new_file_that_does_not_fit(tmp_path: Path) -> None:
    spec = trained(tmp_path).spec
    with pytest.raises(ValueError, match=r"expected columns \['albumin'\]"):
        read_for(spec, clinic(tmp_path, ["z,0,2,56"], "id,time,bili,age"))
    with pytest.raises(ValueError, match="times are of kind 'date', but the model was trained on 'number'"):
        read_for(spec, clinic(tmp_path, ["z,2020-01-01,2,4,56", "z,2020-01-02,2,4,56"], "id,time,bili,albumin,age"))
