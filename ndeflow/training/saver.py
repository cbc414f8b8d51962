"""How the Trainer saves a run, and when, so that it can be resumed exactly."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final
from weakref import proxy

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ndeflow.training.checkpoints import FORMAT, KEY, checksum_file, read_checkpoint, write_checkpoint
from ndeflow.training.table import TableLogger

LAST = "last.ckpt"

_log = logging.getLogger("ndeflow")


@final
class AtomicIO(TorchCheckpointIO):
    """How the Trainer writes and reads checkpoints: `Trainer(plugins=[AtomicIO(...)])`.

    identity: what is needed to use the weights (configuration, what the data were), plain values; put into every
    checkpoint, weights-only ones included, as checkpoint["ndeflow"], beside the format number.
    """

    def __init__(self, identity: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.identity = dict(identity or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint and its checksum. Raises OSError when it can not; the old files are then intact."""
        checkpoint[KEY] = {"format": FORMAT, **self.identity, **checkpoint.get(KEY, {})}
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """As `read_checkpoint`; nothing but plain values and tensors is ever loaded."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        for file in (Path(path), checksum_file(Path(path))):
            file.unlink(missing_ok=True)


@final
class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that does nothing but after validations, not even look for it after each step.

    Writing a checkpoint waits for the disk six times, as long as many steps of a small model take. So what is to be
    saved waits, in the memory of the CPU: it is written before the next whole checkpoint, which counts on it, and when
    training ends, of itself or not. A process that dies leaves the best weights of its last.ckpt; resumed, it finds the
    later ones again. Training that ends without any validation leaves its last weights.
    """

    _waiting: tuple[str, dict[str, Any]] | None = None  # where to, and what

    @cached_property
    def state_key(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return super().state_key

    def on_train_batch_end(self, *args: Any) -> None:
        pass

    def on_train_epoch_end(self, *args: Any) -> None:
        pass

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Wherever the run lay before: its files lie here now."""
        path = self.format_checkpoint_name({})
        best = dict(zip([path], state_dict["best_k_models"].values(), strict=False))
        here = {"best_model_path": path, "kth_best_model_path": path, "best_k_models": best} if best else {}
        super().load_state_dict({**state_dict, "dirpath": self.dirpath, **here})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.best_model_score is None:
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))
        self._write(trainer)
        trainer.strategy.barrier("best.ckpt")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        try:
            self._write(trainer)
        except OSError as error:  # why training ended matters more
            _log.warning("the best weights could not be written: %s", error)

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        found = super()._monitor_candidates(trainer)
        if self.monitor not in found:
            known = ", ".join(sorted(name for name in found if name.startswith("val/")))
            raise ValueError(f"expected monitor to be one of {known}, got {self.monitor}")
        return found

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)  # on all processes
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        if trainer.is_global_zero:
            self._waiting = filepath, _copied(checkpoint)

    def _write(self, trainer: pl.Trainer) -> None:
        """Write what waits. Raises OSError when it can not be written; it waits on then."""
        if self._waiting is not None:
            path, checkpoint = self._waiting
            trainer.strategy.save_checkpoint(checkpoint, path)
            self._waiting = None
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))


def _copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy whose weights are on the CPU."""
    weights = [x for x in checkpoint["state_dict"].values() if isinstance(x, Tensor)]
    return copy.deepcopy(checkpoint, {id(x): x.detach().to("cpu", copy=True) for x in weights})


def best_checkpoint(folder: Path, monitor: str = "val/loss", mode: str = "min") -> BestCheckpoint:
    """The callback that keeps the weights of the best validation so far as best.ckpt."""
    return BestCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_weights_only=True,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


@final
class Saver(Callback):
    """Writes last.ckpt at the start of a training batch, the one place from which Lightning resumes exactly.

    It does so at the first batch, every `every_seconds`, and wherever validation or the end of the epoch follows the
    batch; where that would take more than a thousandth of the time (short epochs), as often as it does not.
    Loggers are saved first, so that the files on disk are never behind the checkpoint; on resuming, rows of the
    table that are ahead of it are dropped.
    """

    def __init__(self, folder: Path | str, every_seconds: float = 60.0) -> None:
        if every_seconds < 0:
            raise ValueError(f"expected every_seconds >= 0 between checkpoints, got {every_seconds}; 60 is usual")
        self.path, self.every_seconds = Path(folder) / LAST, every_seconds
        self._saved_at, self._cost = float("-inf"), 0.0
        self._buffers: list[tuple[Tensor, int]] = []  # with their versions at the start of the batch
        self.at_boundary = False  # are there no gradients of earlier batches, which a checkpoint would lack?

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._buffers = [(buffer, 0) for buffer in pl_module.buffers()]
        batches = trainer.fit_loop.epoch_loop.batch_progress.total
        batches.ready = batches.completed  # a checkpoint counts its own batch, which is to come once more
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                logger.rewind(trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._buffers = [(buffer, _version(buffer)) for buffer, _ in self._buffers]
        self.at_boundary = batch_idx % trainer.accumulate_grad_batches == 0
        if self.at_boundary and trainer.strategy.reduce_boolean_decision(self._due(trainer, batch_idx), all=False):
            self.save(trainer)

    def unchanged(self, pl_module: pl.LightningModule) -> bool:
        """Whether, before the optimizer step, the state is that of the batch's start: a forward pass changes buffers
        in some modules (batch normalisation)."""
        now = list(pl_module.buffers())
        same = all(a is b and _version(b) == version for (a, version), b in zip(self._buffers, now, strict=False))
        return self.at_boundary and len(now) == len(self._buffers) and same

    def save(self, trainer: pl.Trainer) -> None:
        """Save the loggers, then the checkpoint. To be called on every process."""
        start = time.perf_counter()
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - start

    def _due(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        since = time.perf_counter() - self._saved_at
        return since >= self.every_seconds or (since >= 1000 * self._cost and pause_follows(trainer, batch_idx))


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


def pause_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether validation or the end of the epoch follows this training batch: nothing can be saved there."""
    per_epoch = trainer.check_val_every_n_epoch is not None
    done = batch_idx if per_epoch else trainer.fit_loop.epoch_loop.total_batch_idx
    validates = trainer.enable_validation and (done + 1) % (trainer.val_check_batch or math.inf) == 0
    return validates or batch_idx + 1 == trainer.num_training_batches
