"""A check sees what the training would see."""

from ndeflow import train


def test_a_check_solves_in_the_precision_of_the_training(capsys):
    words = ["recipe=quickstart", "check=true", "solver.rtol=1e-10", "solver.atol=1e-10"]
    assert train.main(words) == 1
    assert "solve in float64" in capsys.readouterr().err
    assert train.main([*words, "trainer.precision=64-true"]) == 0
    assert "evaluations" in capsys.readouterr().out
