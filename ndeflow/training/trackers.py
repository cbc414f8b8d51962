"""Where metrics, configuration and figures go besides the run folder: Weights & Biases, and any Lightning logger."""

from __future__ import annotations

import importlib
import netrc
import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

CONNECT_SECONDS = 2.0
_PACKAGES = {
    "CometLogger": "comet-ml",
    "MLFlowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
}


def wandb_logger(
    run_dir: Path | str,
    project: str = "ndeflow",
    config: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    **settings: Any,
) -> Logger:
    """A logger for Weights & Biases that never prompts and never waits for a network that is not there.

    WANDB_MODE is obeyed where it is set. Otherwise: online if there is a key and the server can be reached, else
    offline, in run_dir/wandb, with a line on standard error that says how to upload it.

    config: plain values. run_id: by default made once and kept in the run folder, so that a resumed run goes on with
    the same curves. settings: further arguments of `wandb.init` (entity, group, tags, name, ...).
    Raises ValueError when the package is missing.
    """
    if find_spec("wandb") is None:
        raise ValueError("expected the package wandb for logger=wandb, found none; run: pip install wandb")
    if rank_zero_only.rank > 0:
        return DummyLogger()
    import wandb

    run_dir = Path(run_dir)
    mode = os.environ.get("WANDB_MODE") or wandb_mode(wandb.Settings().base_url)
    run = wandb.init(
        project=project,
        dir=str(run_dir),
        id=run_id or _kept_id(run_dir / "wandb_id"),
        resume="allow",
        mode=mode,  # pyright: ignore[reportArgumentType]
        config=dict(config or {}),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        **settings,
    )
    if mode == "offline":
        print(f"wandb: offline; to upload: wandb sync {Path(run.dir).parent}", file=sys.stderr)
    return WandbLogger(experiment=run)


def wandb_mode(base_url: str) -> str:
    """ "online" if there is a key for the server and a connection to it within two seconds, else "offline"."""
    host = urllib.parse.urlsplit(base_url).hostname or ""
    return "online" if _has_key(host) and _reachable(base_url) else "offline"


def generic(target: str, **settings: Any) -> Logger:
    """Any Lightning logger by the name of its class, for instance lightning.pytorch.loggers.TensorBoardLogger.

    Raises ValueError when there is no such class, or when the package that it needs is missing.
    """
    module, _, name = target.rpartition(".")
    try:
        logger = getattr(importlib.import_module(module), name)(**settings)
    except ImportError as error:
        package = _PACKAGES.get(name, error.name or module.partition(".")[0])
        raise ValueError(f"expected the package behind {target}, found none; run: pip install {package}") from error
    except (AttributeError, ValueError) as error:
        raise ValueError(f"expected the full name of a Lightning logger, got {target!r} ({error})") from error
    if not isinstance(logger, Logger):
        raise ValueError(f"expected a Lightning logger, got {target}; name a class of lightning.pytorch.loggers")
    return logger


def send_figure(logger: Logger, name: str, path: Path, step: int = 0) -> None:
    """Show a PNG file in a tracker that can show figures; others are left alone."""
    if isinstance(logger, WandbLogger):
        logger.log_image(f"figures/{name}", [str(path)])
    elif isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        logger.experiment.add_image(f"figures/{name}", imread(path)[..., :3], step, dataformats="HWC")


@rank_zero_only
def finish(loggers: Iterable[Logger], status: str = "success") -> None:
    """Close trackers after the last figure was sent."""
    for logger in loggers:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=0 if status == "success" else 1)


def _kept_id(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(os.urandom(4).hex())
    return path.read_text().strip()


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reachable(url: str) -> bool:
    """Whether the server, or the proxy in front of it, accepts a connection."""
    scheme = urllib.parse.urlsplit(url).scheme or "https"
    host = urllib.parse.urlsplit(url).hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    parts = urllib.parse.urlsplit(proxy or url)
    try:
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        socket.create_connection(address, CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
