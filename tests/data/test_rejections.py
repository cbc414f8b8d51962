"""Every file that is to be refused, by line, before any training; and what is accepted with a warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ndeflow.data import DataWarning, Files, MissingData

GOOD = [f"{name},{time},{row + time / 4},{'pq'[row % 2]}" for row, name in enumerate("abcdefgh") for time in range(2)]


def written(folder: Path, lines: list[str], header: str = "id,time,x,target") -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Files(path, **{"target": "target", **options}).setup()


def changed(line: int, text: str) -> list[str]:
    """The good file with another text in this line; the header is line 1."""
    lines = list(GOOD)
    lines[line - 2] = text
    return lines


def test_the_good_file_is_accepted(tmp_path: Path) -> None:
    data = Files(written(tmp_path, GOOD), target="target")
    assert data.sizes == {"channels": 1, "classes": 2, "outputs": 2, "inputs": 0, "length": 2, "train_rows": 6}


@pytest.mark.parametrize(("sep", "header"), [(";", "id;time;x;target"), ("\t", "id\ttime\tx\ttarget")])
def test_1_wrong_separator(tmp_path: Path, sep: str, header: str) -> None:
    path = written(tmp_path, [line.replace(",", sep) for line in GOOD], header)
    refused(path, f"one column '{header}': wrong separator, set data.sep")
    assert Files(path, target="target", sep="tab" if sep == "\t" else sep).sizes["channels"] == 1


def test_2_no_id_or_time_column(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "patient,time,x,target")
    refused(path, "expected columns id and time, got ['patient', 'time', 'x', 'target']; set data.id_column")
    assert Files(path, target="target", id_column="patient").sizes["channels"] == 1


def test_3_duplicate_column(tmp_path: Path) -> None:
    refused(written(tmp_path, GOOD, "id,time,x,x"), "column(s) ['x'] appear twice")


def test_4_ragged_row(tmp_path: Path) -> None:
    refused(written(tmp_path, changed(6, "c,0,1")), "line 6: expected 4 fields, got 3")


@pytest.mark.parametrize(("text", "count"), [("id,time,x\n", 1), ("", 0), ("\n\n", 0)])
def test_5_nothing_in_it(tmp_path: Path, text: str, count: int) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(text)
    refused(path, f"expected a header and at least one row, got {count} line(s)", target=None)


def test_6_empty_id(tmp_path: Path) -> None:
    refused(written(tmp_path, changed(6, " ,0,1,p")), "line 6: empty id")


def test_7_dates_without_hyphens_are_no_numbers(tmp_path: Path) -> None:
    lines = [line.replace(",0,", ",20200131,").replace(",1,", ",20200201,") for line in GOOD]
    refused(written(tmp_path, lines), "line 2: expected numbers or ISO 8601, got dates such as 20200131; write 2020-01")
    lines[3] = lines[3].replace("20200201", "20200230")
    assert Files(written(tmp_path, lines), target="target").sizes["length"] == 2


@pytest.mark.parametrize("time", ["noon", "", "nan", "inf", "1_0"])
def test_7_unreadable_time(tmp_path: Path, time: str) -> None:
    refused(written(tmp_path, changed(6, f"c,{time},1,p")), f"line 6: time '{time}' is neither a number nor ISO 8601")


def test_8_numbers_mixed_with_dates(tmp_path: Path) -> None:
    refused(written(tmp_path, changed(6, "c,2020-01-01,1,p")), "line 6: times mix ['naive', 'number']")


def test_8_zoned_mixed_with_naive(tmp_path: Path) -> None:
    lines = [line.replace(",0,", ",2020-01-01T00:00Z,").replace(",1,", ",2020-01-01T01:00,") for line in GOOD]
    refused(written(tmp_path, lines), "line 3: times mix ['naive', 'zoned']")


def test_9_two_rows_at_one_time(tmp_path: Path) -> None:
    refused(written(tmp_path, changed(6, "a,0.0,5,p")), "line 6: id 'a' has two rows at time 0.0")


@pytest.mark.parametrize("cell", ["<0.5", "n/a", "1_0", "-nan"])
def test_10_text_in_a_channel(tmp_path: Path, cell: str) -> None:
    refused(written(tmp_path, changed(6, f"c,0,{cell},p")), f"line 6, column 'x': '{cell}' is not a number")


def test_11_decimal_comma(tmp_path: Path) -> None:
    lines = [line.replace(",", ";").replace(".", ",") for line in GOOD]
    path = written(tmp_path, lines, "id;time;x;target")
    refused(path, "line 2, column 'x': '0,0' is not a number; decimal comma? set data.decimal=\",\"", sep=";")
    assert Files(path, target="target", sep=";", decimal=",").train.ys.isfinite().all()


def test_11_decimal_point_where_a_comma_was_promised(tmp_path: Path) -> None:
    path = written(tmp_path, [line.replace(",", ";") for line in GOOD], "id;time;x;target")
    refused(path, "'0.0' is not a number; decimal point?", sep=";", decimal=",")


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e999"])
def test_12_infinite_value(tmp_path: Path, cell: str) -> None:
    refused(written(tmp_path, changed(6, f"c,0,{cell},p")), "line 6, column 'x': infinite value")


def test_13_target_changes_within_an_id(tmp_path: Path) -> None:
    message = "line 5: target of id 'b' changes from 'q' to 'p'; expected one value per id"
    refused(written(tmp_path, changed(5, "b,1,3,p")), message)


def test_13_split_changes_within_an_id(tmp_path: Path) -> None:
    lines = ["a,0,1,train", "a,1,2,test", "b,0,1,test", "b,1,3,test"]
    message = "line 3: split of id 'a' changes from 'train' to 'test'; expected one value per id"
    refused(written(tmp_path, lines, "id,time,x,split"), message, target=None)


def test_13_static_changes_within_an_id(tmp_path: Path) -> None:
    path = written(tmp_path, ["a,0,1,50", "a,1,2,51"], "id,time,x,age")
    refused(path, "line 3: age of id 'a' changes from '50' to '51'", target=None, statics=["age"])


def test_14_no_target_for_an_id(tmp_path: Path) -> None:
    lines = [line[:-1] if line.startswith("c") else line for line in GOOD]
    refused(written(tmp_path, lines), "no target for id(s) ['c']")


def test_14_a_class_that_training_lacks(tmp_path: Path) -> None:
    lines = ["a,0,1,p,train", "a,1,2,p,train", "b,0,1,p,val", "b,1,2,p,val", "c,0,1,q,test", "c,1,2,q,test"]
    path = written(tmp_path, lines, "id,time,x,target,split")
    refused(path, "class(es) ['q'] occur in val/test but not in train")


def test_14_a_target_that_is_no_number(tmp_path: Path) -> None:
    refused(written(tmp_path, GOOD), "target of id 'a': 'p' is not a number", task="regression")


@pytest.mark.parametrize("task", ["regression", None])
def test_14_a_target_that_is_not_finite(tmp_path: Path, task: str | None) -> None:
    lines = [f"{line[:-1]}{'inf' if line[0] == 'c' else 0.5}" for line in GOOD]
    refused(written(tmp_path, lines), "data.csv: target of id 'c': expected a finite number, got 'inf'", task=task)


@pytest.mark.parametrize(("cell", "message"), [("", "has no value in"), ("3", "is constant in")])
@pytest.mark.parametrize("standardise", [True, False])
def test_15_channel_empty_or_constant_in_training(tmp_path: Path, cell: str, message: str, standardise: bool) -> None:
    lines = ["a,0,1,,train", f"a,1,2,{cell},train", "b,0,1,4,val", "b,1,2,5,val", "c,0,1,6,test", "c,1,2,7,test"]
    path = written(tmp_path, lines, "id,time,x,y,split")
    refused(path, f"channel 'y' {message} the training ids", target=None, standardise=standardise)


def test_16_too_few_times(tmp_path: Path) -> None:
    path = written(tmp_path, [line for line in GOOD if not line.startswith("c,1")])
    refused(path, "id 'c' has 1 time(s), expected at least 2; data.drop_short=true")
    with pytest.warns(DataWarning, match="left out 1 of 8 ids"):
        data = Files(path, target="target", drop_short=True)
        data.setup()
    assert "c" not in data.ids and len(data.ids) == 7


def test_17_unknown_split(tmp_path: Path) -> None:
    path = written(tmp_path, ["a,0,1,train", "a,1,2,train", "b,0,1,dev", "b,1,2,dev"], "id,time,x,split")
    refused(path, "split has ['dev']; expected train, val, test", target=None)


def test_a_split_without_test_rows(tmp_path: Path) -> None:
    path = written(tmp_path, ["a,0,1,train", "a,1,2,train", "b,0,1,val", "b,1,2,val"], "id,time,x,split")
    refused(path, "expected the splits train, test and maybe val, got ['train', 'val']", target=None)


def test_a_row_index_is_no_channel(tmp_path: Path) -> None:
    path = written(tmp_path, ["0,a,0,1", "1,a,1,2"], ",id,time,x")
    refused(path, "column 1 has no name", target=None)


@pytest.mark.parametrize("cell", ["", "NaN", "NAN", "Nan"])
def test_a_missing_static(tmp_path: Path, cell: str) -> None:
    path = written(tmp_path, ["a,0,1,50", "a,1,2,", f"b,0,1,{cell}", f"b,1,2,{cell}"], "id,time,x,age")
    refused(path, "line 4, column 'age': no age for id(s) ['b']", target=None, statics=["age"])


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    refused(written(tmp_path, GOOD), "expected columns ['label']", target="label")
    refused(written(tmp_path, GOOD), "expected columns ['y']", channels=["x", "y"])


@pytest.mark.parametrize(
    "options",
    [{"channels": ["x", "x"]}, {"channels": ["x"], "target": "x"}, {"statics": ["x"], "target": "x"},
     {"channels": ["x"], "statics": ["x"]}],
)  # fmt: skip
def test_a_column_that_is_two_things(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape("got ['x'] twice; leave all but one out")):
        Files("data.csv", **options)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no file .*; set data.path"):
        Files(tmp_path / "nothing.csv").setup()


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("id,time,größe\na,0,1\n".encode("latin-1"))
    refused(path, "not a UTF-8 text file", target=None)


def test_one_long_series_cannot_be_split(tmp_path: Path) -> None:
    path = written(tmp_path, ["a,0,1", "a,1,2"], "id,time,x")
    refused(path, "expected at least 3 series to split into train, val and test, got 1", target=None)


@pytest.mark.parametrize("options", [{"task": "ranking"}, {"time_origin": "now"}, {"time_scale": 0.0}, {"drop": 1.0},
                                     {"batch_size": 0}])  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Files("data.csv", **options)


def test_unknown_keywords_raise() -> None:
    with pytest.raises(TypeError, match="chanels"):
        Files("data.csv", chanels=["x"])  # pyright: ignore[reportCallIssue]


def warned(path: Path, message: str, **options: Any) -> None:
    with pytest.warns(DataWarning, match=message) as caught:
        Files(path, **options).setup()
    assert len(caught) == 1


def test_warns_of_unsorted_rows(tmp_path: Path) -> None:
    warned(written(tmp_path, [GOOD[1], GOOD[0], *GOOD[2:]]), "not sorted by time", target="target")


def test_rows_of_one_id_may_lie_apart(tmp_path: Path) -> None:
    lines = sorted(GOOD, key=lambda line: line.split(",")[1])
    assert Files(written(tmp_path, lines), target="target").sizes["length"] == 2


def test_warns_of_a_channel_that_is_mostly_missing(tmp_path: Path) -> None:
    lines = [f"id{i},{t},{i + t},{t if i == 0 else ''}" for i in range(40) for t in range(3)]
    path = written(tmp_path, [line + (",train" if i < 90 else ",test") for i, line in enumerate(lines)],
                   "id,time,x,y,split")  # fmt: skip
    warned(path, r"'y' \(98%\) are mostly missing")


def test_warns_of_a_long_gap(tmp_path: Path) -> None:
    lines = [f"{i},{t if (i, t) != (4, 3) else 999},{i + t}" for i in range(8) for t in range(4)]
    warned(written(tmp_path, lines, "id,time,x"), "id '4' has a gap of 997, over 100 times the median gap 1")


def test_warns_of_many_classes(tmp_path: Path) -> None:
    lines = [f"id{i},{t},{i + t},{i % 21}" for i in range(42) for t in range(2)]
    warned(written(tmp_path, lines), "21 classes; if the target is a number", target="target")


def test_warns_of_ids_in_two_cases(tmp_path: Path) -> None:
    lines = [line.replace("a,", "P1,").replace("b,", "p1,") for line in GOOD]
    warned(written(tmp_path, lines), "ids 'P1' and 'p1' differ in upper and lower case only", target="target")
