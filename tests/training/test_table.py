import pytest

from ndeflow.training.table import TableLogger, read_table


def test_rows_of_one_step_are_one_and_columns_keep_their_order(tmp_path):
    table = TableLogger(tmp_path / "run" / "metrics.csv")
    table.log_metrics({"loss": 0.1, "nfe": 20.0}, step=5)
    table.log_metrics({"val/loss": 1 / 3}, step=5)
    table.log_metrics({"new": float("nan"), "loss": 1e-300}, step=10)
    table.save()
    assert (tmp_path / "run" / "metrics.csv").read_text() == (
        "step,loss,nfe,val/loss,new\n5,0.1,20.0,0.3333333333333333,\n10,1e-300,,,nan\n"
    )
    assert read_table(tmp_path / "run" / "metrics.csv")[0] == {"step": 5, "loss": 0.1, "nfe": 20, "val/loss": 1 / 3}


def test_nothing_is_written_before_save(tmp_path):
    table = TableLogger(tmp_path / "metrics.csv")
    table.log_metrics({"loss": 0.1}, step=1)
    assert list(tmp_path.iterdir()) == []
    table.finalize("failed")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("stop", range(0, 12))
def test_a_continued_file_is_the_same_byte_for_byte(tmp_path, stop):
    def rows(table, first, last):
        for step in range(first + 1, last + 1):
            table.log_metrics({"loss": step / 7}, step=step)
            if step % 4 == 0:
                table.log_metrics({f"late{step}": 1.0 * step}, step=step)

    whole, cut = TableLogger(tmp_path / "whole.csv"), TableLogger(tmp_path / "cut.csv")
    rows(whole, 0, 12)
    whole.save()
    rows(cut, 0, 12)
    cut.save()
    again = TableLogger(tmp_path / "cut.csv")
    again.rewind(stop)
    rows(again, stop, 12)
    again.save()
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_unwritable_place_keeps_the_old_file(tmp_path, monkeypatch):
    table = TableLogger(tmp_path / "metrics.csv")
    table.log_metrics({"loss": 1.0}, step=1)
    table.save()
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    table.log_metrics({"loss": 2.0}, step=2)
    with pytest.raises(OSError, match="No space left"):
        table.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
