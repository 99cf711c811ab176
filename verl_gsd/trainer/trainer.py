"""Our trainer modes: verl's V1 trainers, seen from inside.

So far ``gsd_sync`` is verl's synchronous trainer with one knob: how often the replay buffer is looked at.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.validation import own_problems


@register_trainer("gsd_sync")
class GSDTrainerSync(PPOTrainerSync):
    """verl's ``sync`` trainer with ``algorithm.gsd.poll_interval`` (seconds; null leaves verl's 2 s).

    Raises:
        ConfigError: ``algorithm.gsd`` is wrong. ``verl-gsd train`` says so earlier; verl's own ``main_ppo`` does not.
    """

    def __init__(self, config: DictConfig):
        if problems := own_problems(config):
            raise ConfigError("\n".join(problems))
        # verl compares this string with "sync" in several places and reads the mode's options under its name.
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        poll_interval = OmegaConf.select(self.config, "algorithm.gsd.poll_interval")
        if poll_interval is not None:
            buffer.poll_interval = float(poll_interval)
        return buffer
