"""Rehearsals of every recipe, and of a loss that reads a column which its rows do not have."""

import os

import pytest
import rehearsal_data
from omegaconf import OmegaConf
from places import SUPPORT
from rehearsing import MACHINE, part, rehearse

from verl_gsd import config as groups

#: What a recipe's rehearsal must have seen, besides what every rehearsal sees.
SEEN = {
    "dagrpo": ("algorithm.gsd.dagrpo", "judge: the stand-in answered"),
    "gvpo": ("algorithm.gsd.gvpo",),
    "hadw": ("algorithm.gsd.hadw",),
    "gsd": (),
    "start": (),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rehearsal_data.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.minutes(6)
@pytest.mark.parametrize("recipe", groups.choices("recipe"))
def test_every_recipe_can_be_rehearsed(data, tmp_path, recipe):
    code, printed = rehearse(data, tmp_path / "run", f"recipe={recipe}", MACHINE)
    assert code == 0, printed
    worked = part(printed, "seen to work")
    scores = "reward model" if recipe == "gvpo/summarisation" else "reward function"
    # HA-DW's recipes with DAPO do not filter (Table 8 of its paper), so that the name does not tell.
    config = OmegaConf.load(tmp_path / "run-rehearsal" / "run" / "config.yaml")
    filters = bool(config.algorithm.filter_groups.enable)
    assert ("  - dynamic sampling" in worked) is filters, printed
    for text in (
        "validation",
        "checkpoint",
        "resume: the second attempt",
        "resume: the optimizer",
        "resume: the memory of prompts",
        "weights",
        "records",
        scores,
        *SEEN[recipe.split("/")[0]],
    ):
        assert f"  - {text}" in worked, printed


@pytest.mark.minutes(4)
def test_a_loss_that_reads_a_missing_column_is_found(data, tmp_path):
    key = "actor_rollout_ref.actor.policy_loss.loss_mode"
    words = ("recipe=gsd/qwen2.5_math_1.5b", "algo=dagrpo_mask", "algorithm.gsd.dagrpo.judge.scorer=stub", MACHINE)
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = {"VERL_USE_EXTERNAL_MODULES": "lacking_loss", "PYTHONPATH": path}
    code, printed = rehearse(data, tmp_path / "run", *words, f"{key}=lacking", **environment)
    assert code == 1
    assert f"{key}=lacking" in part(printed, "found wrong") and "difficulty" in part(printed, "found wrong")
