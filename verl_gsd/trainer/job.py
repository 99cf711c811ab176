"""One training run as a process of its own: ``python -m verl_gsd.trainer.job RUN/config.yaml``.

What verl's ``main_ppo`` does after composing, on a config that is composed, checked and written down already.
"""

from __future__ import annotations

import sys

from omegaconf import OmegaConf


def main(config_file: str) -> None:
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    config = OmegaConf.load(config_file)
    OmegaConf.set_struct(config, True)  # as Hydra hands it to main_ppo
    run_ppo(config, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    main(sys.argv[1])
