"""Control paths against scipy, and what missing values, padding and the future may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, interp1d
from torch import Tensor

from ndeflow.numerics.observations import augment, filled
from ndeflow.numerics.paths import Hermite, Linear, Piece, Piecewise
from ndeflow.numerics.splines import NaturalCubic

KINDS = pytest.mark.parametrize("kind", [Linear, Hermite, NaturalCubic])
AHEAD = pytest.mark.parametrize("kind", [Linear, Hermite])  # no further than to the next observation
ROWS, TIMES, CHANNELS = 3, 8, 2


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def irregular(rows: int = ROWS, times: int = TIMES) -> Tensor:
    return torch.rand(rows, times, dtype=torch.float64).add(0.1).cumsum(dim=1)


def values(rows: int = ROWS, times: int = TIMES, channels: int = CHANNELS) -> Tensor:
    return torch.randn(rows, times, channels, dtype=torch.float64)


def inside(ts: Tensor, fraction: float) -> Tensor:
    """(B, T - 1): the time at a fraction of each interval."""
    return ts[:, :-1] + fraction * ts.diff(dim=1)


def read(path: Piecewise, times: Tensor) -> Tensor:
    """(B, M, C): the path at times (B, M)."""
    return torch.stack([path.value(times[:, m : m + 1]) for m in range(times.shape[1])], dim=1)


def read_slope(path: Piecewise, times: Tensor) -> Tensor:
    return torch.stack([path.derivative(times[:, m : m + 1]) for m in range(times.shape[1])], dim=1)


def test_linear_is_scipys_interpolation():
    ts, xs = irregular(), values()
    grid = torch.cat([ts, inside(ts, 0.3), inside(ts, 0.8)], dim=1)
    ours = read(Linear.through(ts, xs), grid)
    for b in range(ROWS):
        lines = interp1d(ts[b].numpy(), xs[b].numpy(), axis=0)
        torch.testing.assert_close(ours[b], torch.from_numpy(lines(grid[b].numpy())))


def test_hermite_is_scipys_spline_with_backward_differences():
    ts, xs = irregular(), values()
    grid = torch.cat([ts, inside(ts, 0.3), inside(ts, 0.8)], dim=1)
    path = Hermite.through(ts, xs)
    ours, slopes = read(path, grid), read_slope(path, grid)
    for b in range(ROWS):
        t, x = ts[b].numpy(), xs[b].numpy()
        differences = np.diff(x, axis=0) / np.diff(t)[:, None]
        spline = CubicHermiteSpline(t, x, np.concatenate([differences[:1], differences]), axis=0)
        torch.testing.assert_close(ours[b], torch.from_numpy(spline(grid[b])))
        torch.testing.assert_close(slopes[b], torch.from_numpy(spline.derivative()(grid[b])))


@KINDS
def test_derivative_is_that_of_the_value(kind):
    ts = irregular()
    path = kind.through(ts, values())
    t = inside(ts, 0.4)[:, 3:4].requires_grad_()
    for channel in range(CHANNELS):
        (slope,) = torch.autograd.grad(path.value(t)[:, channel].sum(), t)
        torch.testing.assert_close(path.derivative(t)[:, channel : channel + 1], slope)


@KINDS
def test_shared_times_are_the_same_as_one_copy_a_row(kind):
    ts, xs = irregular(1)[0], values()
    shared, own = kind.through(ts, xs), kind.through(ts.expand(ROWS, -1), xs)
    t = (ts[3] + ts[4]) / 2
    expected = own.value(t.expand(ROWS, 1))
    for path in (shared, own, shared.piece(3), own.piece(3)):
        torch.testing.assert_close(path.value(t), expected)
        torch.testing.assert_close(path.value(t.expand(ROWS, 1, 1)), expected)


@KINDS
def test_a_piece_sees_both_its_ends_from_inside(kind):
    ts = irregular()
    path = kind.through(ts, values())
    for k in range(TIMES - 1):
        piece, start, end = path.piece(k), ts[:, k : k + 1], ts[:, k + 1 : k + 2]
        torch.testing.assert_close(piece.knots, ts[:, k : k + 2])
        for fraction in (0.0, 0.25, 1.0):
            t = torch.lerp(start, end, fraction)
            within = torch.lerp(start, end, min(max(fraction, 1e-8), 1 - 1e-8))
            torch.testing.assert_close(piece.value(t), path.value(within), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(piece.derivative(t), path.derivative(within), rtol=1e-5, atol=1e-5)


def test_a_kink_belongs_to_the_piece_that_ends_there():
    ts = torch.tensor([0.0, 1.0, 2.0])
    path = Linear.through(ts, torch.tensor([[[0.0], [1.0], [-1.0]]]))
    assert path.derivative(ts[1]).item() == 1.0
    assert [path.piece(k).derivative(ts[1]).item() for k in (0, 1)] == [1.0, -2.0]


def test_a_piece_has_no_second_piece():
    piece = Linear.through(irregular(), values()).piece(2)
    assert piece.piece(0) is piece
    with pytest.raises(IndexError, match="expected piece 0"):
        piece.piece(1)


@KINDS
def test_leaves_rebuild_the_path_and_have_one_row_a_sample(kind):
    ts, xs = irregular(1)[0], values()
    path = kind.through(ts, xs)
    for part in (path, path.piece(2)):
        assert all(len(leaf) == ROWS for leaf in part.leaves())
        twice = part.rebuild(iter([leaf.repeat(2, *[1] * (leaf.dim() - 1)) for leaf in part.leaves()]))
        assert type(twice) is type(part)
        t = ts[2] + 0.01
        torch.testing.assert_close(twice.value(t), part.value(t).repeat(2, 1))
    assert isinstance(path.piece(2), Piece)


@KINDS
def test_gradients_of_values_and_times_are_exact(kind):
    ts, xs = irregular(2, 4), values(2, 4, 1)
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]]).unsqueeze(-1)
    t = ts[:, 2:3] - 0.02

    def through(ts: Tensor, xs: Tensor) -> Tensor:
        path = kind.through(ts, xs, mask)
        return torch.cat([path.value(t), path.piece(1).derivative(t)])

    assert torch.autograd.gradcheck(through, (ts.requires_grad_(), xs.requires_grad_()))


@AHEAD
def test_the_future_beyond_the_next_observation_is_not_read(kind):
    ts, xs = irregular(), values()
    changed = torch.cat([xs[:, :5], 100 * values(times=TIMES - 5)], dim=1)
    before, after = kind.through(ts, xs), kind.through(ts, changed)
    known = torch.cat([ts[:, :5], inside(ts, 0.99)[:, :4]], dim=1)
    torch.testing.assert_close(read(before, known), read(after, known), rtol=0, atol=0)
    torch.testing.assert_close(read_slope(before, known), read_slope(after, known), rtol=0, atol=0)
    assert not read(before, inside(ts, 0.5)[:, 4:5]).equal(read(after, inside(ts, 0.5)[:, 4:5]))


@AHEAD
def test_missing_values_are_those_of_a_path_through_the_rest(kind):
    ts, xs = irregular(1), values(1, channels=1)
    mask = torch.tensor([True, False, True, True, False, False, True, True]).view(1, -1, 1)
    path, observed = kind.through(ts, xs.masked_fill(~mask, torch.nan)), mask[0, :, 0]
    lines = interp1d(ts[0, observed].numpy(), xs[0, observed].numpy(), axis=0)
    torch.testing.assert_close(read(path, ts)[0], torch.from_numpy(lines(ts[0].numpy())))
    torch.testing.assert_close(read(kind.through(ts, xs, mask), ts), read(path, ts))


def test_missing_ends_and_empty_channels():
    ts = torch.tensor([0.0, 1.0, 3.0, 4.0])
    nan = torch.nan
    xs = torch.tensor([[nan, 2.0, nan, nan], [nan, nan, nan, nan], [1.0, nan, nan, 5.0]]).T.unsqueeze(0)
    expected = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 4.0, 5.0]]).T.unsqueeze(0)
    torch.testing.assert_close(filled(ts, xs), expected)


@KINDS
def test_unobserved_entries_are_never_read(kind):
    ts, xs = irregular(), values()
    mask = torch.rand(ROWS, TIMES, CHANNELS) < 0.6
    poisoned = xs.masked_fill(~mask, torch.nan).requires_grad_()
    clean, dirty = kind.through(ts, xs, mask), kind.through(ts, poisoned, mask)
    grid = inside(ts, 0.5)
    torch.testing.assert_close(read(clean, grid), read(dirty, grid), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(read(dirty, grid).sum(), poisoned)
    assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


@KINDS
def test_padding_changes_nothing_and_stands_still(kind):
    ts, xs = irregular(), values()
    padding = 3
    long = torch.cat([ts, ts[:, -1:].expand(-1, padding)], dim=1).requires_grad_()
    padded = torch.cat([xs, torch.zeros(ROWS, padding, CHANNELS, dtype=xs.dtype)], dim=1).requires_grad_()
    mask = (torch.arange(TIMES + padding) < TIMES).view(1, -1, 1).expand_as(padded)
    short, path = kind.through(ts, xs), kind.through(long, padded, mask)
    grid = torch.cat([ts, inside(ts, 0.5)], dim=1)
    torch.testing.assert_close(read(path, grid), read(short, grid), rtol=0, atol=0)
    torch.testing.assert_close(read_slope(path, grid), read_slope(short, grid), rtol=0, atol=0)
    last, total = ts[:, -1:], read(path, grid).sum()
    for k in range(TIMES - 1, TIMES + padding - 1):
        still = path.piece(k)
        torch.testing.assert_close(still.value(last), xs[:, -1])
        assert (still.derivative(last) == 0).all()
        total = total + still.value(last).sum() + still.derivative(last).sum()
    for gradient in torch.autograd.grad(total, [long, padded]):
        assert gradient.isfinite().all()


@KINDS
def test_a_jump_at_a_repeated_time_is_passed_over(kind):
    ts = torch.tensor([0.0, 1.0, 1.0, 2.0])
    path = kind.through(ts, torch.tensor([[[0.0], [1.0], [5.0], [7.0]]]))
    before, still, after = (path.piece(k) for k in range(3))
    assert [before.value(ts[1]).item(), still.value(ts[1]).item(), after.value(ts[1]).item()] == [1.0, 1.0, 5.0]
    assert still.derivative(ts[1]).item() == 0.0
    assert after.derivative(torch.tensor(1.2)).item() == pytest.approx(2.0)  # a line: the slope starts anew
    assert after.value(torch.tensor(1.5)).item() == pytest.approx(6.0)


@KINDS
def test_the_values_dtype_is_kept_with_wide_times(kind):
    path = kind.through(irregular(), values().float())
    for part in (path, path.piece(1)):
        assert part.value(torch.tensor(0.5)).dtype == torch.float32
        assert part.derivative(torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float32


def test_augment_prepends_time_and_appends_log_counts():
    ts, xs = irregular(1)[0], values()
    mask = torch.rand(ROWS, TIMES, CHANNELS) < 0.5
    channels, known = augment(ts, xs, mask, counts=True)
    torch.testing.assert_close(channels[..., 0], ts.expand(ROWS, -1))
    torch.testing.assert_close(channels[..., 1 : 1 + CHANNELS], xs)
    expected = np.log1p(np.cumsum(mask.numpy(), axis=1))
    torch.testing.assert_close(channels[..., 1 + CHANNELS :], torch.from_numpy(expected))
    assert known[..., 0].all() and known[..., 1 + CHANNELS :].all() and known[..., 1 : 1 + CHANNELS].equal(mask)
    bare, _ = augment(ts, xs, mask)
    torch.testing.assert_close(bare, channels[..., : 1 + CHANNELS])


@pytest.mark.parametrize(
    ("ts", "xs", "mask", "message"),
    [
        (torch.arange(3.0), torch.zeros(2, 3), None, "expected real xs"),
        (torch.arange(1.0), torch.zeros(2, 1, 1), None, "two times or more"),
        (torch.arange(4.0), torch.zeros(2, 3, 1), None, r"expected ts \(T,\) or \(B, T\)"),
        (torch.arange(3.0), torch.zeros(2, 3, 1), torch.ones(2, 3, 1), "expected a bool mask"),
        (torch.tensor([0.0, 2.0, 1.0]), torch.zeros(2, 3, 1), None, "expected nondecreasing ts"),
    ],
)
def test_what_does_not_fit_is_refused(ts, xs, mask, message):
    with pytest.raises(ValueError, match=message):
        Linear.through(ts, xs, mask)
