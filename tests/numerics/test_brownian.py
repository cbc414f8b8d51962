"""Brownian: the published Philox vectors, the law of the normals, and what a path depends on."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from ndeflow.numerics.brownian import BLOCK, CHUNK, WORD, Brownian, Path, box_muller, philox, step_normals
from ndeflow.numerics.compiled import Program
from ndeflow.numerics.rewrites import rules

F64 = {"dtype": torch.float64, "device": torch.device("cpu")}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((WORD,) * 4, (WORD,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, words):
    got = philox([torch.tensor(word) for word in counter], key)
    assert " ".join(f"{word.item():08x}" for word in got) == words


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_words_give_finite_normals(dtype):
    words = torch.tensor([0, WORD])
    for first in words:
        normals = torch.stack(box_muller(first.expand(2), words, dtype))
        assert normals.dtype == dtype
        assert normals.isfinite().all()
        assert normals.abs().max() < math.sqrt(2 * 24 * math.log(2)) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_and_correlations_are_a_standard_normals(dtype):
    z = Brownian(7).normals(0, 200, 5, batch=200, dtype=dtype, device=torch.device("cpu")).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n) + (4e-3 if dtype == torch.bfloat16 else 0)
    assert abs(z.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / n) + (4e-2 if dtype == torch.bfloat16 else 0)
    for pair in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[..., 1:], z[..., :-1])):
        product = pair[0] * pair[1]
        assert abs(product.mean()) < 4 / math.sqrt(product.numel())


def test_distribution_function_is_the_normals():
    z = Brownian(11).normals(0, 100, 4, batch=250, **F64).flatten().sort().values
    exact = torch.special.ndtr(z)
    empirical = (torch.arange(len(z), dtype=z.dtype) + 0.5) / len(z)
    assert (exact - empirical).abs().max() < 1.95 / math.sqrt(len(z))  # Kolmogorov-Smirnov at 0.1 %


def test_the_path_does_not_depend_on_the_split_of_the_batch_or_its_order():
    index = torch.tensor([40, 3, 2**40 + 3, 17, 5])
    whole = Brownian(1, index).normals(0, 20, 3, batch=5, **F64)
    first = Brownian(1, index[:2]).normals(0, 20, 3, batch=2, **F64)
    rest = Brownian(1, index[2:]).normals(0, 20, 3, batch=3, **F64)
    assert torch.equal(whole, torch.cat([first, rest], dim=1))
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(whole[:, order], Brownian(1, index[order]).normals(0, 20, 3, batch=5, **F64))
    assert not torch.equal(whole[:, 1], whole[:, 2]), "both words of the index count"


def test_the_path_does_not_depend_on_how_many_steps_are_drawn_at_once():
    whole = Brownian(1).normals(0, 50, 3, batch=4, **F64)
    parts = [Brownian(1).normals(n, 10, 3, batch=4, **F64) for n in range(0, 50, 10)]
    assert torch.equal(whole, torch.cat(parts))
    many = CHUNK // (4 * 3) + 5
    tail = Brownian(1).normals(many - 10, 10, 3, batch=4, **F64)
    assert torch.equal(Brownian(1).normals(0, many, 3, batch=4, **F64)[-10:], tail)


def test_channels_are_the_same_whatever_their_number_and_float32_rounds_float64():
    wide = Brownian(1).normals(0, 6, 9, batch=4, **F64)
    assert torch.equal(Brownian(1).normals(0, 6, 2, batch=4, **F64), wide[..., :2])
    single = Brownian(1).normals(0, 6, 9, batch=4, dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(single, wide.float(), rtol=1e-5, atol=1e-6)


def test_no_index_means_the_row_number():
    numbered = Brownian(1, torch.arange(4)).normals(0, 6, 2, batch=4, **F64)
    assert torch.equal(Brownian(1).normals(0, 6, 2, batch=4, **F64), numbered)


@pytest.mark.parametrize("other", [2, 1 + 2**32, -1])
def test_another_seed_gives_other_noise(other):
    a, b = (Brownian(seed).normals(0, 100, 4, batch=50, **F64) for seed in (1, other))
    assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())


def test_the_numbers_stay_the_same():
    got = Brownian(7, torch.tensor([5, 2**40])).normals(3, 1, 3, batch=2, **F64)
    known = [[-0.5150569951505789, -1.7588022421295855, 0.1938854764046072]]
    known += [[-1.581731478063061, -0.4520864711131342, -1.5741260635875507]]
    torch.testing.assert_close(got[0], torch.tensor(known, dtype=torch.float64), rtol=1e-14, atol=0)


def test_antithetic_paths_are_opposite_in_pairs_that_keys_make_wherever_the_rows_are():
    index = torch.tensor([6, 7, 2**40 + 1, 2**40, 3])
    got = Brownian(1, index, antithetic=True).normals(0, 20, 3, batch=5, **F64)
    plain = Brownian(1, index >> 1).normals(0, 20, 3, batch=5, **F64)
    assert torch.equal(got, plain * torch.tensor([1, -1, -1, 1, -1])[:, None])
    assert torch.equal(got[:, 3:], Brownian(1, index[3:], antithetic=True).normals(0, 20, 3, batch=2, **F64))
    pairs = Brownian(1, antithetic=True).normals(0, 20, 3, batch=4, **F64)
    assert torch.equal(pairs[:, 0::2], -pairs[:, 1::2]) and not torch.equal(pairs[:, 0], pairs[:, 2])


def test_negative_keys_are_keys_like_others():
    z = Brownian(1, torch.tensor([-1, 0, 1])).normals(0, 200, 10, batch=3, **F64).transpose(0, 1).flatten(1)
    assert (z @ z.T / z.shape[1] - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / z.shape[1])
    pairs = Brownian(1, torch.tensor([-2, -1, 0]), antithetic=True).normals(0, 20, 3, batch=3, **F64)
    assert torch.equal(pairs[:, 0], -pairs[:, 1]) and not torch.equal(pairs[:, 0].abs(), pairs[:, 2].abs())


def test_no_steps_give_an_empty_tensor():
    assert Brownian(1).normals(0, 0, 3, batch=2, **F64).shape == (0, 2, 3)


def test_a_wrong_index_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="one integer key a row"):
        Brownian(1, torch.rand(3))
    with pytest.raises(ValueError, match="the index of this batch"):
        Brownian(1, torch.arange(3)).normals(0, 1, 1, batch=4, **F64)


def test_a_drawn_seed_follows_the_default_generator():
    torch.manual_seed(3)
    seeds = [Brownian.drawn().seed for _ in range(2)]
    torch.manual_seed(3)
    assert seeds == [Brownian.drawn().seed for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_a_path_walks_forwards_and_backwards_over_the_same_normals():
    total = 2 * BLOCK + 7
    path = Path(Brownian(1), 3, total, batch=4, **F64)
    whole = Brownian(1).normals(0, total, 3, batch=4, **F64)
    assert all(torch.equal(path(n), whole[n]) for n in [*range(total), *reversed(range(total)), 5, 130, 64])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("size", [3, 16])
def test_machine_code_makes_the_same_numbers_whatever_the_words(size):
    def normals(step, low, high, index):
        return [step_normals((low, high), index, step, size, torch.float64)]

    index = torch.arange(8)
    program = Program(
        normals, [torch.tensor(0), torch.tensor(0), torch.tensor(0), index], [False] * 3 + [True], rules()
    )
    for words in ((0, 0, 3_000_000_000), (0, WORD, WORD - 4), (2**31 + 5, 3_000_000_000, 7)):
        given = [*map(torch.tensor, words), index]
        for a, b in zip(program.run([*given]), normals(*given), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
