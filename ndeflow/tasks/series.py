"""Tasks on series: to continue them, to fill them in, to classify or regress them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from ndeflow import plots
from ndeflow.contracts import Batch, DataSpec, Output, Regularizer
from ndeflow.metrics import Weighted
from ndeflow.models.base import Model
from ndeflow.numerics.segments import wide
from ndeflow.tasks.base import Optimizer, Scheduler, Task
from ndeflow.tasks.losses import SeriesLoss, SquaredError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SeriesTask(Task):
    """A prediction for every time of a series, judged where values were observed but not seen by the model."""

    scores: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    """The splits in which something must be scored."""
    hiding: ClassVar[str] = "{_target_: ndeflow.data.First, count: 1}"
    """A `data.seen` that leaves something to be scored."""

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        criterion: SeriesLoss | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, regularizers=regularizers, scheduler=scheduler, seed=seed)
        self.criterion = criterion or SquaredError()

    def setup(self, stage: str) -> None:
        """Raises ValueError where a split has nothing to be scored, of which no training and no score can come."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        splits = {name: getattr(data, name, None) for name in self.scores if stage == "fit" or name == stage}
        check_scored({name: split for name, split in splits.items() if isinstance(split, Batch)}, self.hiding)

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        return dict(self.criterion.metrics(output, batch.ys, batch.scored.to(batch.ys.dtype), self.spec))

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        made = {"predictions": plots.predictions(batch, output.prediction, self.spec, draws=output.draws)}
        if batch.ys.shape[-1] >= 2:
            made["phase_portrait"] = plots.phase_portrait(batch, output.prediction, self.spec, draws=output.draws)
        if output.draws:
            made["calibration"] = plots.calibration(output.prediction, batch.ys, batch.scored)
        return made


@final
class Forecasting(SeriesTask):
    """Continue a series: trained and judged on the observed values that the model may not see."""

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return self.criterion(output, batch.ys, batch.scored.to(batch.ys.dtype), self.spec)

    def weight(self, batch: Batch) -> Tensor:
        return batch.scored.sum()


@final
class Interpolation(SeriesTask):
    """Fill in a series: trained to reproduce every observed value, judged on those that the model may not see."""

    scores = ("val", "test")
    hiding = "{_target_: ndeflow.data.Hidden, fraction: 0.3}"

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return self.criterion(output, batch.ys, batch.mask.to(batch.ys.dtype), self.spec)

    def weight(self, batch: Batch) -> Tensor:
        return batch.mask.sum()


@final
class Classification(Task):
    """A class for every series: cross-entropy of logits (B, K); with draws (S, B, K), of their mean probability.

    balanced: weight classes by their inverse frequency in the training data.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        *,
        balanced: bool = False,
        regularizers: Mapping[str, Regularizer] | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, regularizers=regularizers, scheduler=scheduler, seed=seed)
        self.balanced = balanced

    def loss(self, output: Output, batch: Batch) -> Tensor:
        weight = output.prediction.new_tensor(self.spec.class_weights) if self.balanced else None
        return nn.functional.nll_loss(log_probabilities(output), classes_of(batch), weight=weight)

    def weight(self, batch: Batch) -> Tensor:
        if not self.balanced:
            return super().weight(batch)
        classes = classes_of(batch)
        return torch.tensor(self.spec.class_weights, device=classes.device)[classes].sum()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        logp, target = log_probabilities(output), classes_of(batch)
        return {
            "accuracy": (logp.argmax(dim=-1) == target).to(logp.dtype),
            "nll": -logp.gather(1, target[:, None]).squeeze(1),
        }

    def figures(self, output: Output, batch: Batch) -> dict[str, Figure]:
        predicted = log_probabilities(output).argmax(dim=-1)
        return {"confusion_matrix": plots.confusion_matrix(classes_of(batch), predicted, self.spec.classes)}


@final
class Regression(Task):
    """A number, or K of them, for every series: mean squared error of predictions (B, K); draws are averaged.

    In model units: of targets with mean 0 and standard deviation 1 where the data are standardised. The metric rmse is
    in the data's own.
    """

    def check(self, spec: DataSpec) -> None:
        super().check(spec)
        if spec.classes:
            raise ValueError(
                f"expected numbers to regress, got the {len(spec.classes)} classes {', '.join(spec.classes[:3])}, ...; "
                "set data.task=regression (in data of your own: targets as floats), or task=classification"
            )

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return self._errors(output, batch).square().mean()

    def metrics(self, output: Output, batch: Batch) -> dict[str, Tensor | Weighted]:
        errors = wide(self._errors(output, batch))
        scale = errors.new_tensor(self.spec.target_std or (1.0,))
        return {"rmse": Weighted((errors * scale).square(), root=True)}

    def _errors(self, output: Output, batch: Batch) -> Tensor:
        mean = output.prediction.mean(dim=0) if output.draws else output.prediction
        if batch.target is None:
            raise ValueError("expected numbers to regress, got data without a target; set data.target")
        return mean - batch.target.reshape(mean.shape)


def check_scored(splits: Mapping[str, Batch], hiding: str) -> None:
    """Raises ValueError where a model may read all observed values of a split. hiding: a `data.seen` that cures it."""
    empty = [name for name, split in splits.items() if not split.scored.any()]
    if empty:
        raise ValueError(
            f"expected values that the model may not read, to be scored, got none in {', '.join(empty)}; leave out "
            f"data.target, with which everything may be read, or hide more: 'data.seen={hiding}'"
        )


def classes_of(batch: Batch) -> Tensor:
    """The classes (B,) of a batch; raises ValueError where it has none."""
    if batch.target is None or batch.target.is_floating_point():
        raise ValueError("expected classes to learn, got data without a class label; set data.target, or another task")
    return batch.target


def log_probabilities(output: Output) -> Tensor:
    """(B, K) from logits (B, K), or the logarithm of the mean probability of draws (S, B, K)."""
    logp = output.prediction.log_softmax(dim=-1)
    if not output.draws:
        return logp
    return logp.logsumexp(dim=0) - torch.log(logp.new_tensor(float(len(logp))))
