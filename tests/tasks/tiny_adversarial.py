"""A tiny generator and critic of random walks, trained by one process or by two.

As a command: FOLDER: two processes train in FOLDER/whole, and in FOLDER/cut, where the first of them gets a signal amid
the second of three epochs of seven batches, after which both go on from the checkpoint; each leaves its weights as
FOLDER/{whole,cut}RANK.pt.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import ExponentialLR

from ndeflow.contracts import DataSpec, Series
from ndeflow.data import DataModule
from ndeflow.models import CDECritic, SDEGenerator
from ndeflow.runs import first_process
from ndeflow.tasks import Adversarial
from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.signals import Interrupted, raise_on_signals
from tests.training import tiny_training as tiny
from tests.training.test_resume import SignalAt

SPEC = DataSpec(("a",), (0.0,), (1.0,))
ADAM = partial(torch.optim.Adam, lr=0.01)
COMMAND = [sys.executable, "-m", "tests.tasks.tiny_adversarial"]  # to be run in tiny.ROOT


class Walks(DataModule):
    """Twenty random walks of five steps, of which fourteen are to train on."""

    def series(self) -> Series:
        ys = torch.randn(20, 6, 1, generator=torch.Generator().manual_seed(5)).cumsum(dim=1)
        return Series(torch.arange(6).expand(20, -1), ys)


def task(**settings: Any) -> Adversarial:
    torch.manual_seed(3)
    generator = SDEGenerator(1, hidden=3, width=4, noise_size=2, initial_noise=2)
    critic = CDECritic(1, hidden=3, width=4)
    defaults: dict[str, Any] = {"scheduler": partial(ExponentialLR, gamma=0.9), "averaging": 0.8}
    made = Adversarial(generator, critic, ADAM, ADAM, **{**defaults, **settings})
    made.spec = SPEC
    return made


def fit(
    run_dir: Path, *extra: Callback, made: Adversarial | None = None, epochs: int = 3, rows: int = 4, **settings: Any
) -> Adversarial:
    """Train to the end, from last.ckpt if there is one, with batches of so many rows a process."""
    made = made or task()
    torch.manual_seed(99)  # a resumed run must not depend on the state it starts in
    trainer = tiny.make_trainer(run_dir, epochs, *extra, **{"gradient_clip_val": None, **settings})
    last = run_dir / "checkpoints" / "last.ckpt"
    trainer.fit(made, datamodule=Walks(batch_size=rows), ckpt_path=last if last.exists() else None)
    return made


def main(folder: Path) -> None:
    raise_on_signals()
    shared: dict[str, Any] = {"rows": 1, "devices": 2, "strategy": "ddp", "precision": "64-true"}
    leave(fit(folder / "whole", **shared), folder, "whole")
    stop = [SignalAt("on_before_backward", 9)] if first_process() else []
    with suppress(Interrupted):
        fit(folder / "cut", *stop, **shared)
    assert read_checkpoint(folder / "cut" / "checkpoints" / "last.ckpt")["global_step"] == 10
    leave(fit(folder / "cut", **shared), folder, "cut")


def leave(made: Adversarial, folder: Path, name: str) -> None:
    torch.save(made.state_dict(), folder / f"{name}{made.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
