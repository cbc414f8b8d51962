import re
import subprocess

import ndeflow
from ndeflow.training import provenance
from ndeflow.training.provenance import git_commit, versions


def test_versions_name_what_decides_about_results():
    found = versions()
    assert {"python", "platform", "torch", "lightning", "hydra-core"} <= found.keys()
    assert all(isinstance(value, str) for value in found.values())


def test_the_commit_is_that_of_the_package_s_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "ndeflow"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(ndeflow, "__path__", [str(package)])
    assert git_commit() is None
    git = ["git", "-C", str(package.parent), "-c", "user.name=n", "-c", "user.email=e@x"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = git_commit()
    assert commit is not None and re.fullmatch(r"[0-9a-f]{40}", commit)
    (package / "a.py").write_text("x = 2\n")
    assert git_commit() == f"{commit}-dirty"


def test_no_git_is_no_commit(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", missing)
    assert git_commit() is None
