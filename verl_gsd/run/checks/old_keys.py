"""Keys of rewards from before verl had the section ``reward``. verl still lists them, but its V1 trainer reads none."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.run.compose import Line

#: The beginning of an old key -> that of the key that took its place. The first that fits counts.
_NEW_KEYS = {
    "custom_reward_function": "reward.custom_reward_function",
    "sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "reward_model.reward_loop_class_name": "reward.reward_manager.module.name",
    "reward_model.reward_kwargs": "reward.reward_kwargs",
    "reward_model.model.path": "reward.reward_model.model_path",
    "reward_model": "reward.reward_model",
}


def check_old_keys(config: DictConfig, line: Line) -> Iterator[str]:
    """Report old keys with a value. verl would train with another reward, and say nothing."""
    for section in ("custom_reward_function", "reward_model", "sandbox_fusion"):
        values = OmegaConf.to_container(OmegaConf.create({section: config.get(section)}), resolve=True)
        for key, value in dotted_leaves(values):
            if value is None or value == {}:
                continue
            old = next(start for start in _NEW_KEYS if key == start or key.startswith(f"{start}."))
            new = f"{_NEW_KEYS[old]}{key.removeprefix(old)}"
            yield f"{key}={value} does nothing: verl reads {new} instead. Set that key."
