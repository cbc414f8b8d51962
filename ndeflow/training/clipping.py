"""Gradient clipping whose norm is computed once: for clipping, and for the record."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ndeflow.training.meter import Meter


class Clipped(pl.LightningModule):
    """A module with a meter, which is told the norm of all gradients together before they are clipped.

    The meter's train/gradient_norm is ||g|| = sqrt(sum_i g_i^2). Clipping by norm scales g by min(1, c / ||g||) as
    `torch.nn.utils.clip_grad_norm_` does; by value it is Lightning's.
    """

    meter: Meter

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        self.meter.add({"train/gradient_norm": norm})
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_grads_with_norm_(parameters, gradient_clip_val, norm)
