"""Every recipe on every machine, by verl's own checks and ours. tests/unit/repository has a part of them, quickly."""

import pytest
from recipe_configs import HARDWARE, RECIPES, composed, problems

from verl_gsd.run.checks.with_verl import validate_with_verl


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_all_checks_on_every_machine(recipe, monkeypatch):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")
    # No server is asked whether it is there.
    stub = ["algorithm.gsd.dagrpo.judge.scorer=stub"] if recipe.startswith("dagrpo") else []
    for hardware in HARDWARE:
        config = composed(recipe, f"hardware={hardware}", *stub)
        validate_with_verl(config)
        # Its reward model needs a GPU of its own.
        fits = (recipe, hardware) != ("gvpo/summarisation", "1xh200")
        assert (problems(config) == []) is fits, hardware
