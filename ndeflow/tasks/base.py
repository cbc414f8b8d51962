"""What every task is: a LightningModule that turns a prediction and a batch into a loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from ndeflow.contracts import DataSpec, Output, Regularizer
from ndeflow.metrics import Averages, Weighted
from ndeflow.models.base import Model, Preparation
from ndeflow.models.failures import remaining
from ndeflow.numerics.seeds import mix
from ndeflow.numerics.solution import Solution, SolveError
from ndeflow.training.checkpoints import KEY
from ndeflow.training.clipping import Clipped
from ndeflow.training.meter import Meter
from ndeflow.training.ranks import of_all, of_mine
from ndeflow.training.tally import Tally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], Any]


class Task(Clipped, ABC):
    """Training a model: write `loss` and `metrics`; steps, penalties, cost and logging are done here.

    model: the model to train. optimizer: makes the optimizer from parameters. scheduler: makes a learning-rate
    scheduler, stepped once an epoch. regularizers: name -> regularizer, seen by training steps only. seed: of the
    run; the noise of a training step is a function of it and of the global step.
    """

    calming: ClassVar[str] = "lower optimizer.lr, set trainer.gradient_clip_val"
    """What to do where training diverges."""

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.regularizers = dict(regularizers or {})
        self.penalties = nn.ModuleDict(self.regularizers)  # so that they move with the task
        for regularizer in self.regularizers.values():
            regularizer.check(model)
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.meter = Meter()
        self._averages = Averages()
        self._backward_nfe: list[list[int]] = []  # of each solve of this step, to be filled by the backward pass
        self._tally = Tally()

    @abstractmethod
    def loss(self, output: Output, batch: Any) -> Tensor:
        """The scalar to be minimised, without penalties."""

    def weight(self, batch: Any) -> Tensor:
        """What the loss of a batch is a mean over, by which it counts in the loss of a split; by default its rows."""
        return torch.tensor(float(len(batch.index)))

    @abstractmethod
    def metrics(self, output: Output, batch: Any) -> dict[str, Tensor | Weighted]:
        """What evaluation reports: a tensor is averaged over its elements, a `Weighted` as it says, over a split."""

    def figures(self, output: Output, batch: Any) -> dict[str, Figure]:
        """Pictures of a prediction that a person wants to see; none by default."""
        return {}

    @property
    def spec(self) -> DataSpec:
        """What the training data were; kept by the model."""
        if self.model.spec is None:
            raise ValueError("expected a task that knows its data, got none; set task.spec = data.spec before fitting")
        return self.model.spec

    @spec.setter
    def spec(self, spec: DataSpec) -> None:
        self.check(spec)
        self.model.spec = spec

    def check(self, spec: DataSpec) -> None:
        """Refuse data that model or task cannot use: inputs that the model does not read; raises ValueError."""
        if spec.statics and not self.model.reads_inputs:
            raise ValueError(
                f"expected a model that reads the inputs {list(spec.statics)} of the data, got "
                f"{type(self.model).__name__}; set data.statics=[] (they may be data.channels instead), or use "
                "ode_forecaster, ode_interpolator, sde_forecaster, latent_ode or latent_sde; a class of your own that "
                "reads them says so: reads_inputs = True"
            )

    @property
    def progress(self) -> float:
        """How far training is, from 0 at its start to 1 at its end; 0 where its end is not known."""
        steps = self.trainer.estimated_stepping_batches
        return min(self.global_step / steps, 1.0) if math.isfinite(steps) and steps > 0 else 0.0

    @final
    def objective(self, batch: Any) -> Tensor:
        """Loss plus weighted penalties of one forward pass, a scalar; what it cost goes to the meter.

        Rows whose solve failed, where the solver masks failures, are no part of it; without any other row it is 0,
        with zero gradients. Raises FloatingPointError where the result is not finite.
        """
        self.model.reseed(mix(self.seed, self.global_step))
        with self.model.prepared(self.regularizers) as preparation:
            output = self.model(batch)
        self._backward_nfe = [s.stats.backward_nfe for s in output.solutions if s.stats.backward_nfe is not None]
        self.meter.add(**cost(output.solutions, "train"))
        left = remaining(output, batch, preparation.solved)
        self._count(left.failed)
        if left.empty:
            return sum((0.0 * p.sum() for p in self.parameters()), start=output.prediction.new_zeros(()))
        preparation.solved = dict(left.solved)
        loss, penalties = self.terms(left.output, left.batch, preparation)
        total = weighed(loss, penalties, self._weights() if penalties else {})
        if not math.isfinite(total.item()):
            raise FloatingPointError(
                f"expected a finite loss, got {total.item()} at step {self.global_step}; {self.calming}, "
                "or check the data's scale"
            )
        self.meter.add({"train/loss": loss, **{f"train/penalty/{k}": v for k, v in penalties.items()}})
        return total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.objective(batch)

    def on_train_epoch_start(self) -> None:
        self._tally = Tally()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._tally.commit()

    def on_train_epoch_end(self) -> None:
        check_failures(self._tally.share(self.trainer.strategy), "training")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault(KEY, {})["failed"] = of_all(self.trainer, self._tally.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before weights are loaded: in the Trainer's precision already, or double ones would be rounded to single."""
        self.trainer.strategy.precision_plugin.convert_module(self)
        state = of_mine(self.trainer, checkpoint.get(KEY, {}).get("failed", ()))
        if state is not None:
            self._tally.load_state_dict(state)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, and the graph is let go at once instead of after the optimizer step."""
        super().backward(loss, *args, **kwargs)
        loss.detach_()

    def on_after_backward(self) -> None:
        self.meter.add({"train/backward_nfe": float(sum(nfe for (nfe,) in self._backward_nfe))})
        self._backward_nfe = []

    def on_validation_epoch_start(self) -> None:
        self._averages = Averages()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_start(self) -> None:
        self._averages = Averages()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.model.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "monitor": "val/loss"}}

    @final
    def terms(self, output: Output, batch: Any, preparation: Preparation) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each regularizer's unweighted penalty, of a forward pass under `preparation`."""
        penalties = {
            name: regularizer.penalty(self.model, output, batch, preparation.solved[name])
            for name, regularizer in self.regularizers.items()
        }
        return self.loss(output, batch), penalties

    def _weights(self) -> dict[str, float]:
        progress = self.progress
        return {name: regularizer.weight_at(progress) for name, regularizer in self.regularizers.items()}

    def _evaluate(self, batch: Any) -> None:
        self.model.reseed(mix(self.seed, EVALUATION))
        output = self.model(batch)
        left = remaining(output, batch, {})
        if left.failed is not None:
            self._averages.add({"failed": left.failed.double()})
        if not left.empty:
            self._averages.add({"loss": Weighted(self.loss(left.output, left.batch), self.weight(left.batch))})
            self._averages.add(self.metrics(left.output, left.batch))
        nfe = [solution.stats.nfe.double().mean() for solution in output.solutions]
        if nfe:
            self._averages.add({"nfe": torch.stack(nfe).sum()})

    def _report(self, split: str) -> None:
        values = self._averages.reduced(self.trainer.strategy).compute()
        for name, value in values.items():
            self.log(f"{split}/{name}", value, logger=False, batch_size=1)
        check_failures(values.get("failed", 0.0), split)

    def _count(self, failed: Tensor | None) -> None:
        """Note the rows (B,) that failed in this step, where rows can."""
        if failed is not None:
            self._tally.add(failed)
            self.meter.add({"train/failed": failed.double().mean()})


def weighed(loss: Tensor, penalties: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss, and each penalty times its weight."""
    for name, value in penalties.items():
        loss = torch.add(loss, value, alpha=weights[name])
    return loss


EVALUATION = 0x5EED  # in place of a training step's number in the noise seed of evaluations


MOST = 0.1  # of the rows of an epoch may fail


def check_failures(share: float, split: str) -> None:
    """Raises SolveError where more than a tenth of the rows of an epoch, of all processes, failed."""
    if share > MOST:
        raise SolveError(
            f"{share:.0%} of the rows of an epoch of {split} could not be solved, more than {MOST:.0%}; lower "
            "optimizer.lr, bound the field, take more steps, loosen the solver's rtol and atol, or raise its "
            "max_steps; on_failure=raise says where the first of them stops"
        )


def cost(solutions: Iterable[Solution], split: str) -> dict[str, dict[str, Tensor]]:
    """What solves cost: evaluations and steps summed over solves, averaged over rows; the worst error ratio.

    Gives `values` (averaged over steps) and `maxima` as the meter takes them.
    """
    values: dict[str, Tensor] = {}
    maxima: dict[str, Tensor] = {}
    for solution in solutions:
        stats = solution.stats
        means = torch.stack((stats.nfe, stats.accepted, stats.rejected)).double().mean(dim=1)
        for name, mean in zip(("nfe", "accepted", "rejected"), means.unbind(), strict=True):
            key = f"{split}/{name}"
            values[key] = values[key] + mean if key in values else mean
        if stats.error is not None and stats.error.numel():
            worst, key = stats.error.detach().max(), f"{split}/worst_error"
            maxima[key] = torch.maximum(maxima[key], worst) if key in maxima else worst
    return {"values": values, "maxima": maxima}
