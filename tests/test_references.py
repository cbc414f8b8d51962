"""What other methods reach: of the data, of the recipe, or of another recipe that is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ndeflow import running


@pytest.fixture
def found(tmp_path, monkeypatch):
    """The references of a run of recipe `mine`, by what its configuration says, where `other` has a references.py."""
    for name in ("mine", "other"):
        (tmp_path / "recipes" / name).mkdir(parents=True)
        (tmp_path / "recipes" / name / "recipe.yaml").write_text("about: {claim: none}\n")
    code = 'def references(data, seed):\n    return {"reference/other": 10.0 * data.size + seed}\n'
    (tmp_path / "recipes" / "other" / "references.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    data = SimpleNamespace(size=2, references=lambda: {"reference/data": 1.0})

    def references(chosen: bool | str) -> dict[str, float]:
        run: Any = SimpleNamespace(config={"name": "mine", "references": chosen, "seed": 3}, data=data)
        return running.references(run)

    return references


def test_a_run_knows_the_references_of_its_data_and_of_a_recipe_that_it_names(found):
    assert found(True) == {"reference/data": 1.0}
    assert found("other") == {"reference/data": 1.0, "reference/other": 23.0}
    assert found(False) == {}
