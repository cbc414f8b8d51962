"""The Brownian tree: the law of its increments and areas, how they join, and what they depend on."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ndeflow.numerics.brownian import Brownian, row_normals, step_normals
from ndeflow.numerics.tree import DEEPEST, LEVEL, BrownianTree, Increment, increment

CPU, F64 = torch.device("cpu"), torch.float64
KEY = Brownian(3).branch(0)


def over(start, stop, rows=4, size=2, dtype=F64, depth=24, key=KEY) -> Increment:
    start, stop = torch.as_tensor(start).long(), torch.as_tensor(stop).long()
    return increment(key, torch.arange(rows), start, stop, size, dtype, depth)


def joined(a: Increment, b: Increment, left: Tensor, right: Tensor) -> Increment:
    """Of two intervals of these lengths, one after the other."""
    whole = torch.where(left + right > 0, left + right, 1.0)
    area = (left * a.h + right * b.h + 0.5 * (right * a.w - left * b.w)) / whole
    return Increment(a.w + b.w, area)


def tensors() -> int:
    """How many tensors are alive."""
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def assert_standard_normal(x: Tensor) -> None:
    """Kolmogorov-Smirnov at 0.1 %, and the variance within four standard errors."""
    x = x.double().flatten().sort().values
    empirical = (torch.arange(len(x), dtype=F64) + 0.5) / len(x)
    assert (torch.special.ndtr(x) - empirical).abs().max() < 1.95 / math.sqrt(len(x))
    assert abs(x.square().mean() - 1) < 4 * math.sqrt(2 / len(x))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("start", "stop", "depth"),
    [(0, 1, 1), (0, 2**8, 8), (64, 128, 8), (5, 6, 10), (127, 129, 8), (3, 250, 8), (2**31 - 3, 2**31 + 2, 32)],
)
def test_increments_and_areas_have_their_exact_law(start, stop, depth, dtype):
    n, h = 10_000, (stop - start) / 2**depth
    got = over(start, stop, n, 1, dtype, depth)
    assert got.w.dtype == got.h.dtype == dtype
    w, area = got.w / math.sqrt(h), got.h * math.sqrt(12 / h)
    assert_standard_normal(w)
    assert_standard_normal(area)
    assert abs((w * area).mean()) < 4 / math.sqrt(n)


def test_disjoint_intervals_are_independent():
    n, marks, scale = 20_000, (0, 3, 64, 65, 200), 2.0**8
    parts = [over(s, t, n, 2, torch.float32, 8) for s, t in zip(marks, marks[1:], strict=False)]
    x = torch.cat([
        torch.cat([part.w * math.sqrt(scale / (t - s)), part.h * math.sqrt(12 * scale / (t - s))], dim=1)
        for part, s, t in zip(parts, marks, marks[1:], strict=False)
    ], dim=1)  # fmt: skip
    assert (x.T @ x / n - torch.eye(x.shape[1])).abs().max() < 5 * math.sqrt(2 / n)


def test_the_middle_given_the_ends_is_a_brownian_bridge():
    """W(u) given W(1) has mean u W(1) and variance u (1 - u); given H too, mean u W(1) + 6 u (1 - u) H."""
    n, u = 20_000, 77 / 256
    whole, part = over(0, 256, n, 1, F64, 8), over(0, 77, n, 1, F64, 8)
    left = part.w - u * whole.w
    assert_standard_normal(left / math.sqrt(u * (1 - u)))
    assert abs((left * whole.w).mean()) < 4 * math.sqrt(u * (1 - u) / n)
    slope = (left * whole.h).mean() / whole.h.square().mean()
    variance = u * (1 - u) - 3 * (u * (1 - u)) ** 2
    assert abs(slope - 6 * u * (1 - u)) < 4 * math.sqrt(12 * variance / n)
    assert_standard_normal((left - 6 * u * (1 - u) * whole.h) / math.sqrt(variance))


@pytest.mark.parametrize(("level", "place"), [(0, 0), (1, 1), (4, 11)])
def test_halves_are_split_by_their_nodes_own_normals(level, place):
    cells, index, h = 2 ** (24 - level), torch.arange(4), 0.5**level
    node, left, right = (over((place + a) * cells, (place + b) * cells) for a, b in ((0, 1), (0, 0.5), (0.5, 1)))
    normals = row_normals(KEY, index, level + 1 << LEVEL, torch.tensor(place), 4, F64).unflatten(-1, (2, 2))
    x1, x2 = normals[..., 0] * math.sqrt(h), normals[..., 1] * math.sqrt(h)
    for half, sign in ((left, 1), (right, -1)):
        torch.testing.assert_close(half.w, 0.5 * node.w + sign * (1.5 * node.h + x1 / 4), rtol=1e-13, atol=1e-15)
        area = 0.25 * node.h - x1 / 8 + sign * x2 / math.sqrt(48)
        torch.testing.assert_close(half.h, area, rtol=1e-13, atol=1e-15)


def test_the_area_is_the_paths_mean_above_its_chord():
    """H = int W(0, r) dr - W(0, 1) / 2; the trapezoidal rule on cells of length d errs by d / sqrt(12)."""
    cells, rows = 2**9, 50
    starts = torch.arange(cells).repeat(rows)
    steps = increment(KEY, torch.arange(rows).repeat_interleave(cells), starts, starts + 1, 1, F64, 9).w
    ends = steps.view(rows, cells).cumsum(dim=1)
    area = ends.mean(dim=1) - 0.5 * ends[:, -1] / cells - 0.5 * ends[:, -1]
    torch.testing.assert_close(area, over(0, cells, rows, 1, F64, 9).h[:, 0], rtol=0, atol=5 / cells / math.sqrt(12))


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (torch.float32, 3e-6)])
@pytest.mark.parametrize("depth", [1, 6, 24, DEEPEST])
def test_joined_intervals_are_the_whole_to_rounding(depth, dtype, tolerance):
    """Relative to the standard deviation of the whole, also where that is tiny; some parts are empty."""
    rows, generator = 200, torch.Generator().manual_seed(0)
    middle = torch.randint(2**depth + 1, (rows,), generator=generator)
    reach = 2.0 ** (depth * torch.rand(rows, 2, generator=generator))
    start, stop = (middle - reach[:, 0].long()).clamp(min=0), (middle + reach[:, 1].long()).clamp(max=2**depth)
    start[:9], stop[5:14], middle[20:22] = middle[:9], middle[5:14], torch.tensor([0, 2**depth])
    start[20], stop[21] = 0, 2**depth
    a, b, c = (over(s, t, rows, 3, dtype, depth) for s, t in ((start, middle), (middle, stop), (start, stop)))
    left, right = ((end[:, None].to(F64) / 2**depth) for end in (middle - start, stop - middle))
    whole, scale = joined(a, b, left, right), (left + right).sqrt()
    assert ((whole.w - c.w).abs() <= tolerance * scale).all()
    assert ((whole.h - c.h).abs() <= tolerance * scale).all()


def test_empty_intervals_give_zero():
    for place in (0, 1, 2**23 - 1, 2**23, 2**24):
        assert not any(part.any() for part in over(place, place))


def test_a_coarser_grid_gives_the_same_numbers():
    for few, many in zip(over(3, 11, depth=4), over(3 << 28, 11 << 28, depth=32), strict=True):
        torch.testing.assert_close(few, many, rtol=1e-12, atol=1e-14)


def test_fifty_thousand_steps_add_up_and_nothing_is_kept():
    """A walk over 50,000 intervals, in any order; no tensor outlives a query."""
    count, depth = 50_000, 17
    marks = torch.cat([torch.randperm(2**depth - 1)[: count - 1] + 1, torch.tensor([0, 2**depth])]).sort().values
    index, total, alive = torch.tensor([7]), torch.zeros(2, 1, dtype=F64), []
    for some in torch.randperm(count).split(count // 10):
        total[0] += increment(KEY, index.expand(len(some)), marks[some], marks[some + 1], 1, F64, depth).w.sum()
        alive.append(tensors())
    total[1] = increment(KEY, index, marks[0], marks[-1], 1, F64, depth).w
    torch.testing.assert_close(total[0], total[1], rtol=0, atol=1e-12)
    assert alive[-1] <= alive[0]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_path_does_not_depend_on_the_batch_its_order_or_the_other_rows_intervals(dtype):
    index = torch.tensor([40, 3, 2**40 + 3, 17, 5])
    start, stop = torch.tensor([0, 5, 5, 2**23, 77]), torch.tensor([2**24, 9, 9, 2**23 + 1, 12345])
    whole = increment(KEY, index, start, stop, 3, dtype)
    for order in (torch.tensor([4, 2, 0, 1, 3]), torch.tensor([2]), torch.tensor([0, 1])):
        some = increment(KEY, index[order], start[order], stop[order], 3, dtype)
        assert all(torch.equal(a, b[order]) for a, b in zip(some, whole, strict=True))
    shared = increment(KEY, index, start[1], stop[1], 3, dtype)
    assert all(torch.equal(a[1:3], b[1:3]) for a, b in zip(shared, whole, strict=True))
    assert not torch.equal(whole.w[1], whole.w[2]), "both words of the index count"


def test_channels_are_the_same_whatever_their_number_and_float32_rounds_float64():
    wide, narrow, single = (
        over(5, 77_000, size=9),
        over(5, 77_000, size=3),
        over(5, 77_000, size=9, dtype=torch.float32),
    )
    for a, b, c in zip(wide, narrow, single, strict=True):
        assert torch.equal(a[:, :3], b)
        torch.testing.assert_close(c, a.float(), rtol=1e-5, atol=1e-7)
    half = over(5, 77_000, size=9, dtype=torch.bfloat16)
    assert torch.equal(half.w, single.w.bfloat16()) and torch.equal(half.h, single.h.bfloat16())


def test_a_traced_query_gives_the_same_numbers_for_any_interval():
    def query(low, high, index, start, stop):
        return increment((low, high), index, start, stop, 5, F64, 5)

    index = torch.tensor([4, 2, 2**33, ~7])
    traced = make_fx(query)(*torch.tensor(KEY), index, torch.tensor(0), torch.tensor(1))
    for places in ((0, 32), (31, 32), (3, 27), (8, 8)):
        inputs = (*torch.tensor(Brownian(9).branch(2)), index, *map(torch.tensor, places))
        assert all(torch.equal(a, b) for a, b in zip(traced(*inputs), query(*inputs), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_makes_the_same_numbers():
    tree = BrownianTree(Brownian(3), 0.0, 1.0, 5)
    here, there = (tree(0.1, 0.7, batch=9, dtype=F64, device=torch.device(name)) for name in ("cpu", "cuda"))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.to(CPU), rtol=1e-12, atol=1e-14)


def test_other_trees_and_the_noise_of_numbered_steps_are_independent():
    n = 20_000
    columns = [
        over(0, 64, n, 1, depth=6, key=Brownian(seed).branch(k)).w for seed, k in ((3, 0), (3, 1), (3, 2**32), (4, 0))
    ]
    columns += [step_normals(Brownian(3).key, torch.arange(n), torch.tensor(step), 1, F64) for step in (0, 1)]
    x = torch.cat(columns, dim=1)
    assert (x.T @ x / n - torch.eye(6)).abs().max() < 5 * math.sqrt(2 / n)


def test_opposite_paths_have_opposite_increments_and_areas():
    tree = BrownianTree(Brownian(3, torch.tensor([6, 7, 2]), antithetic=True), 0.0, 2.0, 3)
    plain = BrownianTree(Brownian(3, torch.tensor([3])), 0.0, 2.0, 3)
    got, alone = (of(0.3, 1.7, batch=rows, dtype=F64, device=CPU) for of, rows in ((tree, 3), (plain, 1)))
    for x, y in zip(got, alone, strict=True):
        assert torch.equal(x[0], -x[1]) and torch.equal(x[:1], y) and not torch.equal(x[0].abs(), x[2].abs())


def test_a_tree_between_two_times_scales_the_unit_interval():
    t0, t1 = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([4.0, 1.5, 2.0], dtype=F64)
    got = BrownianTree(Brownian(3), t0, t1, 2)(t0, t0 + 0.25 * (t1 - t0), batch=3, dtype=F64, device=CPU)
    for x, unit in zip(got, over(0, 2**22, rows=3), strict=True):
        torch.testing.assert_close(x, (t1 - t0).sqrt()[:, None] * unit, rtol=1e-14, atol=0)
    whole = BrownianTree(Brownian(3), 0.0, 4.0, 2, number=1)(0, 4, batch=3, dtype=F64, device=CPU)
    torch.testing.assert_close(whole.w, 2 * over(0, 1, rows=3, depth=0, key=Brownian(3).branch(1)).w)
    near = BrownianTree(Brownian(3), 0.0, 1.0, 2, depth=2)(0.1, 0.7, batch=3, dtype=F64, device=CPU)
    assert torch.equal(near.w, over(0, 3, rows=3, depth=2).w), "times are rounded to the grid"


def test_wrong_trees_and_intervals_are_refused_with_the_cure():
    for depth in (0, DEEPEST + 1):
        with pytest.raises(ValueError, match="expected a depth between 1 and 32"):
            BrownianTree(Brownian(3), 0.0, 1.0, 2, depth=depth)
    tree = BrownianTree(Brownian(3), 0.0, 1.0, 2)
    for s, t in ((0.5, 0.4), (-0.1, 0.4), (0.5, 1.1), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="give its tree other ends"):
            tree(s, t, batch=3, dtype=F64, device=CPU)
