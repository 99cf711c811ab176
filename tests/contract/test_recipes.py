"""verl's own checks of every recipe on every machine."""

import pytest
from recipe_configs import HARDWARE, RECIPES, composed

from verl_gsd.trainer.validation_with_verl import validate_with_verl


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_verls_checks_on_every_machine(recipe, monkeypatch):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")
    for hardware in HARDWARE:
        validate_with_verl(composed(recipe, f"hardware={hardware}"))
