from ndeflow.numerics.seeds import mix


def test_the_first_value_is_that_of_splitmix64():
    assert mix(0) == 0xE220A8397B1DCDAF >> 1  # published first output of SplitMix64 for seed 0


def test_seeds_are_63_bit_and_distinct():
    seeds = {mix(a, b) for a in range(-50, 50) for b in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_order_and_number_of_parts_count():
    assert len({mix(1, 2), mix(2, 1), mix(1), mix(1, 2, 0), mix(0, 1, 2)}) == 5


def test_neighbouring_parts_share_about_half_of_their_bits():
    flipped = [(mix(5, step) ^ mix(5, step + 1)).bit_count() for step in range(1000)]
    assert abs(sum(flipped) / 1000 - 31.5) < 0.5
