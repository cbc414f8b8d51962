"""Adversarial training of a generator of paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ndeflow import plots
from ndeflow.contracts import Batch, Output, Regularizer
from ndeflow.metrics import Weighted, kolmogorov, lagged_correlation
from ndeflow.models.base import Model
from ndeflow.nets.lipschitz import Clipping, Constraint
from ndeflow.tasks.averaging import Average
from ndeflow.tasks.base import Optimizer, Scheduler, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@final
class Adversarial(Task):
    """A generator of paths against a critic D of them: min over the generator, max over D of E D(real) - E D(fake).

    The Wasserstein distance of the two laws where D ranges over the functions of Lipschitz constant 1 (Arjovsky,
    Chintala, Bottou 2017); D is kept near such functions by `constraint`, which its weights meet after every step.
    One forward and one backward pass a step serve both: the critic's gradients are reversed, and both optimizers step.

    critic: scores (B,) of a batch all of whose observed values it may read. critic_optimizer: as optimizer, which is
    the generator's. scheduler: made for both. averaging: decay of the average of the generator's weights that is
    validated and kept as the best, for the two players circle around each other; 0: the weights themselves. Raises
    ValueError for a scheduler that waits for a metric, for paths with missing values, and for a Trainer that clips,
    accumulates or scales gradients.

    Metrics compare the increments of generated and of real paths, exactly where a split is one batch of one process:
    Kolmogorov's distance (marginal), mean differences of the correlations of squares with later squares and of
    increments with later squares (leverage), at up to `lags` lags, and their sum (distance).
    """

    calming: ClassVar[str] = "lower optimizer.lr and task.critic_optimizer.lr"

    def __init__(
        self,
        model: Model,
        critic: Model,
        optimizer: Optimizer,
        critic_optimizer: Optimizer,
        *,
        constraint: Constraint | None = None,
        averaging: float = 0.0,
        lags: int = 10,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, regularizers=regularizers, scheduler=scheduler, seed=seed)
        self.automatic_optimization = False
        self.critic, self.critic_optimizer = critic, critic_optimizer
        self.constraint, self.lags = constraint or Clipping(), lags
        self.constraint.project(critic)
        self.average = Average(model, averaging)
        self._schedulers: list[Any] = []

    def loss(self, output: Output, batch: Batch) -> Tensor:
        scores = self.critic(joined(batch, output.prediction)).prediction
        real, fake = scores.chunk(2)
        return real.mean() - fake.mean()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        if not bool(batch.mask.all()):
            raise ValueError("expected paths without gaps for Adversarial, got missing values; cut them to one length")
        fake, real = increments(output.prediction), increments(batch.ys)
        lags = min(self.lags, real.shape[1] - 1)
        found = {
            "marginal": kolmogorov(fake.flatten(), real.flatten()),
            "squares": gap(*(lagged_correlation(x.square(), x.square(), lags) for x in (fake, real))),
            "leverage": gap(*(lagged_correlation(x, x.square(), lags) for x in (fake, real))),
        }
        return {**found, "distance": torch.stack(list(found.values())).sum()}

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        return {"sampled_paths": plots.sampled_paths(batch, output.prediction, self.spec, lags=self.lags)}

    def configure_callbacks(self) -> list[Callback]:
        """None. The Trainer asks for them first of all: what it cannot do for two optimizers is said here."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_options(self.trainer)
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator, critic = self.trainer.optimizers
        for optimizer in (generator, critic):
            optimizer.zero_grad()
        loss = self.objective(batch)
        self.manual_backward(loss)
        reverse_gradients(self.critic)
        self.meter.add({"train/gradient_norm": norm(self.model), "train/critic_gradient_norm": norm(self.critic)})
        critic.step()
        self.constraint.project(self.critic)
        self._steps().step()
        self.average.update(self.model, self.global_step - 1)
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.average.exchange(self.model)

    def on_validation_end(self) -> None:
        """The trained weights again, once the best checkpoint, which holds the average as the model, is written."""
        self.average.exchange(self.model)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        for scheduler in self._schedulers:
            scheduler.step()

    def configure_optimizers(self) -> Any:
        made = [self.optimizer(self.model.parameters()), self.critic_optimizer(self.critic.parameters())]
        if self.scheduler is None:
            return made
        self._schedulers = [self.scheduler(optimizer) for optimizer in made]
        if any(isinstance(one, ReduceLROnPlateau) for one in self._schedulers):
            raise ValueError("expected a scheduler that needs no metric for Adversarial; use scheduler=cosine")
        return made, self._schedulers

    def _steps(self) -> LightningOptimizer:
        """The generator's optimizer as the Trainer counts its steps: one a batch, as in other tasks."""
        found = self.optimizers()
        assert isinstance(found, list) and isinstance(found[0], LightningOptimizer)
        return found[0]


def check_options(trainer: pl.Trainer) -> None:
    """Raises ValueError for what a Trainer does only where it makes the optimizer's steps itself."""
    if trainer.gradient_clip_val:
        raise ValueError(
            "expected no trainer.gradient_clip_val for Adversarial, whose constraint bounds the critic, "
            f"got {trainer.gradient_clip_val}; set it to null and {Adversarial.calming}"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            "expected trainer.accumulate_grad_batches=1 for Adversarial, which steps after every batch, "
            f"got {trainer.accumulate_grad_batches}; raise data.batch_size instead"
        )
    if trainer.precision == "16-mixed":
        raise ValueError(
            "expected a trainer.precision without a scale of the loss for Adversarial, whose two "
            "optimizers would share it, got 16-mixed; use bf16-mixed or 32-true"
        )


def joined(batch: Batch, fake: Tensor) -> Batch:
    """The real rows of a batch, then those of generated values at the same times, (2 B, ...), all to be read."""
    twice = {name: torch.cat([leaf, leaf]) for name, leaf in batch._asdict().items() if leaf is not None}
    both = batch._replace(**{**twice, "ys": torch.cat([batch.ys, fake])})
    return both._replace(seen=both.mask)


def increments(paths: Tensor) -> Tensor:
    """From each time to the next: (B, T, C) -> (B, T - 1, C)."""
    return paths.diff(dim=1)


def gap(fake: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (fake - real).abs().mean()


@torch.no_grad()
def reverse_gradients(module: nn.Module) -> None:
    """Change the sign of all gradients of a module, so that a step of descent ascends."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.neg_()


def norm(module: nn.Module) -> Tensor:
    """The norm of all gradients of a module together."""
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
