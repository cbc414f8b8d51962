"""Adversarial training: which way each side steps, what bounds the critic, and a resume that is exact."""

from __future__ import annotations

import math
import subprocess
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ndeflow.metrics import Averages
from ndeflow.nets.lipschitz import SpectralNorm, weights
from ndeflow.numerics.stochastic import Stochastic
from ndeflow.tasks import Adversarial
from ndeflow.tasks.adversarial import check_options, joined
from ndeflow.training.checkpoints import read_checkpoint
from ndeflow.training.signals import Interrupted
from tests.models.test_gan import paths
from tests.tasks.tiny_adversarial import COMMAND, Walks, fit, task
from tests.training import tiny_training as tiny
from tests.training.test_resume import SignalAt


def distance(made: Adversarial, batch) -> torch.Tensor:
    made.model.reseed(1)
    return made.loss(made.model(batch), batch)


def test_the_loss_is_the_difference_of_mean_scores():
    made, batch = task().double(), paths(channels=1)
    output = made.model(batch)
    real, fake = (
        made.critic(batch._replace(ys=ys, seen=batch.mask)).prediction for ys in (batch.ys, output.prediction)
    )
    torch.testing.assert_close(made.loss(output, batch), real.mean() - fake.mean())
    both = joined(batch, output.prediction)
    assert both.seen.all() and torch.equal(both.ys[5:], output.prediction) and torch.equal(both.ts[5:], batch.ts)


@pytest.mark.parametrize(("side", "sign"), [("model", -1), ("critic", 1)])
def test_the_generator_descends_and_the_critic_ascends(tmp_path, side, sign):
    """A step of plain descent on one side alone: the distance changes by -rate |g|^2, or by +rate |g|^2."""
    rate = 1e-5
    moving, still = partial(torch.optim.SGD, lr=rate), partial(torch.optim.SGD, lr=0.0)
    made = task(scheduler=None)
    made.optimizer, made.critic_optimizer = (moving, still) if side == "model" else (still, moving)
    data = Walks(batch_size=14)
    before, norms = {}, []

    class Once(tiny.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            before["batch"] = batch

        def on_after_backward(self, trainer, module):
            before["state"] = {k: v.clone() for k, v in module.state_dict().items()}
            norms.append(sum(p.grad.square().sum() for p in getattr(module, side).parameters()).item())

    tiny.make_trainer(tmp_path, 1, Once(), gradient_clip_val=None, max_steps=1).fit(made, datamodule=data)
    after = distance(made.double(), double(before["batch"])).item()
    made.load_state_dict(before["state"])
    change = after - distance(made, double(before["batch"])).item()
    assert change * sign > 0 and norms[0] > 0


def double(batch):
    return batch._replace(ts=batch.ts.double(), ys=batch.ys.double())


@pytest.mark.parametrize("constraint", [None, SpectralNorm()])
def test_the_critic_meets_its_constraint_from_the_first_step_on(tmp_path, constraint):
    made = fit(tmp_path, made=task(constraint=constraint), epochs=1)
    for weight in weights(made.critic):
        if constraint is None:
            assert weight.abs().max() <= 1 / len(weight)
        else:
            assert torch.linalg.matrix_norm(weight, ord=2) <= 1 + 1e-6


def test_steps_are_counted_once_a_batch_and_rates_fall_together(tmp_path):
    made = fit(tmp_path)
    assert made.trainer.global_step == 3 * 4
    assert len(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"]) == 2
    assert [o.param_groups[0]["lr"] for o in made.trainer.optimizers] == [pytest.approx(0.01 * 0.9**3)] * 2
    row = next(row for row in tiny.read_table(tmp_path / "metrics.csv") if row["step"] == 7)
    assert {"train/loss", "train/gradient_norm", "train/critic_gradient_norm", "train/nfe"} <= row.keys()
    assert row["train/learning_rate"] == pytest.approx(0.009)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    return fit(run_dir).state_dict(), tiny.reproducible(run_dir), tiny.best(run_dir)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_after_backward",
                                  "on_before_optimizer_step", "on_validation_batch_start"])  # fmt: skip
def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(tmp_path, whole, hook):
    with pytest.raises(Interrupted):
        fit(tmp_path, SignalAt(hook, 6))
    tiny.assert_same_run(tmp_path, fit(tmp_path).state_dict(), whole)


def test_two_processes_train_as_one_with_the_batches_of_both_and_resume_exactly(tmp_path):
    subprocess.run([*COMMAND, str(tmp_path)], cwd=tiny.ROOT, check=True, timeout=120)
    one = fit(tmp_path / "one", rows=2, precision="64-true").state_dict()
    whole = torch.load(tmp_path / "whole0.pt")
    for name in ("whole1", "cut0", "cut1"):
        tiny.assert_equal(torch.load(tmp_path / f"{name}.pt"), whole)
    assert tiny.reproducible(tmp_path / "cut") == tiny.reproducible(tmp_path / "whole")
    assert max((one[name] - value).abs().max() for name, value in whole.items()) < 1e-13
    assert not torch.equal(one["critic.readout.weight"], task().double().critic.readout.weight)


def test_a_resume_in_double_precision_is_exact(tmp_path):
    double = {"precision": "64-true"}
    whole = fit(tmp_path / "whole", **double).state_dict()
    with pytest.raises(Interrupted):
        fit(tmp_path / "cut", SignalAt("on_before_backward", 6), **double)
    tiny.assert_equal(fit(tmp_path / "cut", **double).state_dict(), whole)
    assert whole["model.readout.weight"].dtype == torch.float64


def test_where_all_paths_fail_both_sides_have_zero_gradients():
    """As processes that share a batch need it, for they wait for each other's gradients of all parameters."""
    made, batch = task().double(), paths(channels=1)
    made.model.solver = Stochastic("heun", on_failure="mask")
    made.objective(batch._replace(ys=batch.ys * math.inf)).backward()
    for side in (made.model, made.critic):
        assert all(p.grad is not None and not p.grad.any() for p in side.parameters())


def test_the_average_is_what_is_validated_and_kept_as_the_best(tmp_path):
    weights = []

    class Notes(tiny.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            weights.append(module.model.readout.weight.detach().clone())

        def on_validation_batch_start(self, trainer, module, *rest):
            self.validated = module.model.readout.weight.detach().clone()

    notes, made = Notes(), task()
    mean = made.model.readout.weight.detach().clone()
    fit(tmp_path, notes, made=made, epochs=1)
    for n, now in enumerate(weights):
        mean.lerp_(now, 1 - min(0.8, (1 + n) / (10 + n)))
    torch.testing.assert_close(notes.validated, mean)
    assert torch.equal(tiny.best(tmp_path)["model.readout.weight"], notes.validated)
    assert torch.equal(made.model.readout.weight, weights[-1]) and not torch.equal(mean, weights[-1])
    with pytest.raises(ValueError, match="expected a decay of the average in"):
        task(averaging=1.0)


def test_real_paths_are_at_distance_zero_from_themselves():
    made, batch = task().double(), paths(rows=30, channels=1)
    output = made.model(batch)
    output.prediction = batch.ys
    averages = Averages()
    averages.add(made.metrics(output, batch))
    assert averages.compute() == {"marginal": 0.0, "squares": 0.0, "leverage": 0.0, "distance": 0.0}
    output.prediction = batch.ys + 100 * batch.ts.unsqueeze(-1)
    assert made.metrics(output, batch)["marginal"] > 0.8


def test_paths_with_gaps_and_schedulers_that_wait_for_metrics_are_refused():
    made, batch = task().double(), paths(channels=1)
    gaps = batch._replace(mask=batch.mask & (torch.arange(6)[:, None] != 2))
    with pytest.raises(ValueError, match="expected paths without gaps"):
        made.metrics(made.model(batch), gaps)
    with pytest.raises(ValueError, match="expected a scheduler that needs no metric"):
        task(scheduler=ReduceLROnPlateau).configure_optimizers()
    assert len(task(scheduler=None).configure_optimizers()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 0.5}, "expected no trainer.gradient_clip_val .* got 0.5; set it to null and lower"),
        ({"accumulate_grad_batches": 2}, "expected trainer.accumulate_grad_batches=1 .* got 2; raise data.batch_size"),
    ],
)
def test_a_trainer_that_clips_or_accumulates_is_refused_before_data_are_read(tmp_path, options, message):
    made, data = task(), Walks(batch_size=4)
    trainer = tiny.make_trainer(tmp_path, 1, **{"gradient_clip_val": None, **options})
    with pytest.raises(ValueError, match=message):
        trainer.fit(made, datamodule=data)
    assert not data._batches and not list(tmp_path.iterdir())
    trainer.test(made, datamodule=data, verbose=False)


def test_a_trainer_that_scales_the_loss_is_refused():
    trainer = SimpleNamespace(gradient_clip_val=None, accumulate_grad_batches=1, precision="16-mixed")
    with pytest.raises(ValueError, match="got 16-mixed; use bf16-mixed or 32-true"):
        check_options(trainer)


def test_a_distance_that_is_not_finite_names_the_rates_of_both_sides(tmp_path):
    made = task()
    torch.nn.init.constant_(made.critic.readout.bias, math.inf)
    with pytest.raises(FloatingPointError, match=r"lower optimizer\.lr and task\.critic_optimizer\.lr, or check"):
        fit(tmp_path, made=made, epochs=1)


def test_figures_show_sampled_paths():
    made, batch = task().double(), paths(rows=30, channels=1)
    figure = made.figures(made.model(batch), batch)["sampled_paths"]
    titles = [panel.get_title(loc="left") for panel in figure.axes if panel.axison]
    assert titles[:3] == ["real", "generated", "density of increments"] and len(titles) == 5
    assert math.isclose(figure.axes[0].get_ylim()[0], figure.axes[1].get_ylim()[0])
