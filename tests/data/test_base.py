"""A user's data set: one method, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ndeflow.contracts import Batch, DataSpec, Series
from ndeflow.data import DataModule, Everything, First, Hidden


def ragged(rows: int, *, seed: int = 0, classes: int = 3) -> Series:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (rows,), generator=generator).tolist()
    ys = [10 + 5 * torch.randn(length, 2, generator=generator) for length in lengths]
    return Series([2.0 * torch.arange(length) for length in lengths], ys, target=[i % classes for i in range(rows)])


class Own(DataModule):
    def __init__(self, given: Any, **options: Any) -> None:
        super().__init__(**options)
        self.given = given

    def series(self) -> Any:
        return self.given


class Swings(DataModule):
    def series(self) -> Series:
        return Series(torch.arange(4.0).expand(20, 4), torch.randn(20, 4, 2))


def same(one: Batch, other: Batch) -> bool:
    return all(a is b is None or a.equal(b) for a, b in zip(one, other, strict=True))


def test_one_method_is_enough() -> None:
    data = Swings()
    assert data.sizes == {"channels": 2, "classes": 0, "outputs": 0, "inputs": 0, "length": 4, "train_rows": 14}
    assert data.spec == DataSpec(channels=("y0", "y1"), mean=(0.0, 0.0), std=(1.0, 1.0))
    assert data.train.seen[:, 0].all() and not data.train.seen[:, 1:].any()
    assert len(data.val.index) == len(data.test.index) == 3
    assert data.references() == {}


def test_rows_keep_their_numbers() -> None:
    series = ragged(40)
    data = Own(series)
    for batch in (data.train, data.val, data.test):
        for row, number in enumerate(batch.index.tolist()):
            length = len(series.ts[number])
            torch.testing.assert_close(batch.ys[row, :length], series.ys[number])
    numbers = torch.cat([batch.index for batch in (data.train, data.val, data.test)])
    assert numbers.sort().values.equal(torch.arange(40))


def test_the_split_is_that_of_split_seed_alone() -> None:
    series = ragged(60)
    first = Own(series, split_seed=1)
    assert same(first.test, Own(series, split_seed=1, seed=9, batch_size=4, drop_seed=3).test)
    assert not first.test.index.equal(Own(series, split_seed=2).test.index)


def test_a_mapping_is_taken_as_given_and_numbered_through() -> None:
    data = Own({"test": ragged(5), "train": ragged(20), "val": ragged(6)})
    assert [batch.index.tolist() for batch in (data.train, data.val, data.test)] == [
        list(range(20)), list(range(20, 26)), list(range(26, 31))]  # fmt: skip


def test_validation_is_carved_from_training() -> None:
    data = Own({"train": ragged(40, classes=4), "test": ragged(10)})
    assert len(data.val.index) == 6 and len(data.train.index) == 34
    assert data.test.index.tolist() == list(range(40, 50))
    assert data.val.target is not None and len(data.val.target.unique()) == 4
    with pytest.raises(ValueError, match="at least 2 training rows"):
        Own({"train": ragged(1), "test": ragged(1)}).setup()


@pytest.mark.parametrize("names", [("train",), ("train", "dev", "test"), ("val", "test")])
def test_other_splits_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected the splits train, test and maybe val"):
        Own({name: ragged(5) for name in names}).setup()


def test_standardised_on_observed_training_values_only() -> None:
    parts = {"train": ragged(30), "val": ragged(10), "test": ragged(10)}
    shifted = {**parts, "test": parts["test"]._replace(ys=[y * 100 for y in parts["test"].ys])}
    plain, moved = Own(parts, standardise=True, drop=0.4), Own(shifted, standardise=True, drop=0.4)
    assert plain.spec == moved.spec and same(plain.train, moved.train)
    values = [plain.train.ys[..., c][plain.train.mask[..., c]].double() for c in range(2)]
    assert all(abs(v.mean()) < 1e-6 and abs(v.std(correction=0) - 1) < 1e-6 for v in values)
    assert not plain.train.ys[~plain.train.mask].any()


def test_a_channel_without_values_or_spread() -> None:
    ys = torch.randn(20, 4, 2)
    ys[..., 1] = 3.0
    constant = Series(torch.arange(4.0).expand(20, 4), ys)
    with pytest.raises(ValueError, match="channel 'y1' is constant in the training ids"):
        Own(constant, standardise=True).setup()
    Own(constant).setup()
    with pytest.raises(ValueError, match="channel 'y1' has no value in the training ids"):
        Own(constant._replace(mask=torch.tensor([True, False]).expand(20, 4, 2))).setup()


def test_default_visibility_and_policies() -> None:
    labelled, plain = ragged(30), ragged(30)._replace(target=None)
    assert Own(labelled).train.seen.equal(Own(labelled).train.mask)
    assert Own(plain).train.seen.any(dim=-1).sum(dim=1).eq(1).all()
    assert not Own(plain, seen=Everything()).train.scored.any()
    assert Own(labelled, seen=First(2)).test.seen.any(dim=-1).sum(dim=1).eq(2).all()
    hidden = Own(labelled, seen=Hidden(0.5))
    assert hidden.train.scored.any() and not (hidden.train.seen & ~hidden.train.mask).any()


def test_a_subclass_may_decide_what_is_visible() -> None:
    class Odd(Own):
        def visible(self, split: str, ts: Tensor, mask: Tensor, index: Tensor) -> Tensor:
            return torch.ones_like(mask) if split == "train" else (ts < 5).unsqueeze(-1).expand_as(mask)

    data = Odd(ragged(30))
    assert data.train.seen.equal(data.train.mask)
    assert data.test.seen.equal(data.test.mask & (data.test.ts < 5).unsqueeze(-1))


def test_time_unit() -> None:
    assert float(Own(ragged(30), time_scale=4.0).train.ts[0, 1]) == 0.5
    data = Own(ragged(30), time_scale=None)
    assert data.spec.time_scale == 2.0 and float(data.train.ts[0, 1]) == 1.0


def test_dropping_thins_every_split_alike_for_every_model() -> None:
    series = ragged(200)
    full, thin, again = Own(series), Own(series, drop=0.5), Own(series, drop=0.5, batch_size=3)
    for name in ("train", "val", "test"):
        before, after = getattr(full, name).mask.sum(), getattr(thin, name).mask.sum()
        assert 0.4 < float(after / before) < 0.65
        assert same(getattr(thin, name), getattr(again, name))
    assert not same(thin.train, Own(series, drop=0.5, drop_seed=1).train)


def test_loaders_and_lightning_hooks() -> None:
    data = Own(ragged(40), batch_size=8)
    assert sum(len(batch.index) for batch in data.train_dataloader()) == len(data.train.index) == 28
    assert data.val_dataloader().size == 32
    assert [batch.index.tolist() for batch in data.predict_dataloader()] == [data.test.index.tolist()]
    moved = data.transfer_batch_to_device(data.train, torch.device("cpu"), 0)
    assert isinstance(moved, Batch) and moved.inputs is None


def test_numbers_to_regress_are_in_units_of_their_spread_where_values_are() -> None:
    target = torch.linspace(49000, 51000, 40, dtype=torch.float64)
    series = ragged(40)._replace(target=target)
    plain, data = Own(series), Own(series, standardise=True)
    assert plain.spec.target_mean == plain.spec.target_std == ()
    z = data.spec.target_to_model_units(target[data.train.index, None])
    assert abs(z.mean()) < 1e-9 and abs(z.std(correction=0) - 1) < 1e-9
    torch.testing.assert_close(data.spec.target_to_data_units(z)[:, 0], target[data.train.index])
    assert data.train.target is not None and data.train.target.equal(z.float())
    assert plain.train.target is not None and plain.train.target.equal(target[plain.train.index, None].float())
    assert plain.spec.target_to_data_units(z) is z and plain.spec.target_to_model_units(z) is z


def test_a_number_to_regress_that_is_the_same_everywhere_keeps_its_unit() -> None:
    target = torch.tensor([50000.1, 0.0], dtype=torch.float64).repeat(40, 1)
    target[:20, 1] = 4.0
    spec = Own(ragged(40)._replace(target=target), standardise=True).spec
    assert spec.target_mean[0] == 50000.1 and spec.target_std[0] == 1.0 and 1.5 < spec.target_std[1] <= 2.0


def test_spec_survives_a_checkpoint() -> None:
    inputs = torch.randn(40, 2)
    spec = Own(ragged(40)._replace(inputs=inputs), standardise=True).spec
    assert DataSpec.from_dict(spec.to_dict()) == spec
    older = {name: value for name, value in spec.to_dict().items() if not name.startswith("target_")}
    assert DataSpec.from_dict(older) == spec
    assert spec.classes == ("0", "1", "2") and spec.statics == ("s0", "s1") and len(spec.statics_std) == 2
