from __future__ import annotations

import json
import socket
import time

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from ndeflow.training import trackers
from ndeflow.training.trackers import finish, generic, send_figure, wandb_logger, wandb_mode


@pytest.fixture
def picture(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    figure.savefig(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def no_wandb_settings(monkeypatch, tmp_path):
    for name in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def written(path, *words: bytes) -> bool:
    """Whether a file holds all words; wandb's own process writes it a moment after."""
    end = time.monotonic() + 10
    while not all(word in path.read_bytes() for word in words) and time.monotonic() < end:
        time.sleep(0.05)
    return all(word in path.read_bytes() for word in words)


def test_wandb_without_a_key_is_offline_and_gets_everything(tmp_path, picture, no_wandb_settings, capfd):
    run_dir = tmp_path / "run"
    logger = wandb_logger(run_dir, "project", {"model": {"width": 16}})
    logger.log_metrics({"train/loss": 0.5}, step=7)
    send_figure(logger, "curves", picture)
    run_id = logger.experiment.id
    finish([logger])
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in capfd.readouterr().err
    assert len(list(folder.glob("files/media/images/figures/curves_*.png"))) == 1
    assert written(folder / f"run-{run_id}.wandb", b"train/loss", b"width")
    again = wandb_logger(run_dir, "project")
    assert again.experiment.id == run_id
    finish([again])


def test_the_mode_that_is_set_is_obeyed(tmp_path, monkeypatch, no_wandb_settings):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    logger = wandb_logger(tmp_path, "project")
    logger.log_metrics({"loss": 1.0}, step=1)
    finish([logger])
    assert not list(tmp_path.glob("wandb/offline-run-*"))


def test_online_only_with_a_key_and_a_server(tmp_path, monkeypatch, no_wandb_settings):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert wandb_mode(url) == "offline"
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        assert wandb_mode(url) == "online"
        monkeypatch.delenv("WANDB_API_KEY")
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert wandb_mode(url) == "online"
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert wandb_mode(url) == "offline"
        monkeypatch.delenv("http_proxy")
    start = time.monotonic()
    assert wandb_mode(url) == "offline"  # the server is gone
    assert time.monotonic() - start < 3


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        wandb_logger(tmp_path)


def test_any_lightning_logger_tensorboard(tmp_path, picture):
    target = "lightning.pytorch.loggers.TensorBoardLogger"
    logger = generic(target, save_dir=str(tmp_path), name="", version="tensorboard")
    assert isinstance(logger, TensorBoardLogger)
    logger.log_hyperparams({"model": {"width": 16}})
    logger.log_metrics({"train/loss": 0.5}, step=7)
    send_figure(logger, "curves", picture)
    finish([logger])
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").glob("events.*"))
    assert all(word in content for word in (b"train/loss", b"figures/curves", b"model/width"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lightning.pytorch.loggers.MLFlowLogger", "pip install mlflow"),
        ("nopackage.Logger", "pip install nopackage"),
        ("lightning.pytorch.loggers.NoLogger", "expected the full name of a Lightning logger"),
        ("TensorBoardLogger", "expected the full name of a Lightning logger"),
        ("collections.Counter", "expected a Lightning logger"),
    ],
)
def test_what_is_no_logger_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        generic(target)


def test_other_loggers_are_left_alone(tmp_path, picture):
    logger = generic("ndeflow.training.table.TableLogger", path=tmp_path / "metrics.csv")
    send_figure(logger, "curves", picture)
    logger.log_metrics({"loss": 1.0}, step=1)
    finish([logger])
    assert json.dumps(logger.rows) == '[{"step": 1.0, "loss": 1.0}]'
