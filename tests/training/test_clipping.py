from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndeflow.training.table import read_table
from tests.training import tiny_training as tiny


class Kept(tiny.TinyTask):
    """Notes the largest gradient and the norm of all that each optimizer step is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []
        self.largest: list[float] = []

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
            self.largest.append(max(g.abs().max().item() for g in gradients))
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)


def trained(tmp_path, **settings) -> tuple[Kept, list[float]]:
    """The task after an epoch, and the gradient norms that were recorded."""
    torch.manual_seed(3)
    task, trainer = Kept(), tiny.make_trainer(tmp_path, 1, **settings)
    trainer.fit(task, tiny.TinyLoader(trainer), tiny.Valid([torch.zeros(1, 1)]))
    rows = read_table(tmp_path / "metrics.csv")
    return task, [row["train/gradient_norm"] for row in rows if "train/gradient_norm" in row]


def test_gradients_are_clipped_by_norm_and_the_norm_before_is_recorded(tmp_path):
    task, recorded = trained(tmp_path, gradient_clip_val=0.01)
    assert task.norms == pytest.approx([0.01] * 9, rel=1e-3)
    assert min(recorded) > 0.02


def test_gradients_are_clipped_by_value(tmp_path):
    task, recorded = trained(tmp_path, gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert task.largest == pytest.approx([0.01] * 9) and min(recorded) > 0.02


def test_without_a_limit_gradients_stay(tmp_path):
    task, recorded = trained(tmp_path, gradient_clip_val=None)
    assert recorded[0] == pytest.approx(sum(task.norms[:7]) / 7)


def test_clipping_is_that_of_torch(tmp_path):
    """Bit for bit."""

    class Plain(tiny.TinyTask):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or 0.0)

    found: list[dict[str, Tensor]] = []
    for kind in (tiny.TinyTask, Plain):
        torch.manual_seed(3)
        task, trainer = kind(), tiny.make_trainer(tmp_path / kind.__name__, 2, gradient_clip_val=0.1)
        trainer.fit(task, tiny.TinyLoader(trainer), tiny.Valid([torch.zeros(1, 1)]))
        found.append(task.state_dict())
    tiny.assert_equal(*found)
