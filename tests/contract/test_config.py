"""Our config groups inside verl's own Hydra application."""

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import MissingConfigException

from verl_gsd import config as groups


def test_any_hydra_application_lists_the_choices():
    """What ``python -m verl.trainer.main_ppo +algo=nope`` meets: the groups are in Hydra's own store."""
    groups.store_groups()
    with (
        initialize_config_module("verl.trainer.config", version_base=None),
        pytest.raises(MissingConfigException, match=r"(?s)algo/nope.*dapo.*dr_grpo.*grpo.*gspo"),
    ):
        compose("ppo_trainer", overrides=["+algo=nope"])
