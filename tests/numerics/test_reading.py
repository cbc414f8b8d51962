import torch

from ndeflow.numerics.reading import quartic


def test_the_quartic_through_a_step_is_every_polynomial_of_degree_four() -> None:
    coefficients = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    t0, h = 0.3, 0.7

    def value(t: torch.Tensor) -> torch.Tensor:
        return sum((c * t**i for i, c in enumerate(coefficients)), start=torch.zeros_like(t))

    def slope(t: torch.Tensor) -> torch.Tensor:
        return sum((i * c * t ** (i - 1) for i, c in enumerate(coefficients) if i), start=torch.zeros_like(t))

    start, mid, end = torch.tensor([t0, t0 + h / 2, t0 + h], dtype=torch.float64)
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    parts = [value(start), slope(start), value(mid), value(end), slope(end)]
    found = sum(w * x for w, x in zip(quartic(s, torch.full_like(s, h)), parts, strict=True))
    assert torch.allclose(found, value(t0 + s * h), rtol=0, atol=1e-14)
    assert found[0] == value(start) and found[-1] == value(end)
