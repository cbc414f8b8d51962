"""Where a result came from: versions and commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ndeflow

_PACKAGES = ("ndeflow", "torch", "lightning", "hydra-core", "torchmetrics", "numpy", "torchdiffeq", "torchsde", "wandb")


def versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the installed packages that decide about results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout that ndeflow runs from, with "-dirty" if it was changed; None outside of one."""
    root = Path(ndeflow.__path__[0]).resolve().parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit or None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
