"""Our trainer modes: verl's V1 trainers, seen from inside.

So far ``gsd_sync`` is verl's synchronous trainer with one knob: how often the replay buffer is looked at.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync


@register_trainer("gsd_sync")
class GSDTrainerSync(PPOTrainerSync):
    """verl's ``sync`` trainer with ``algorithm.gsd.poll_interval`` (seconds; null leaves verl's 2 s)."""

    def __init__(self, config: DictConfig):
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
