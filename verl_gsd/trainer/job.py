"""One training run as a process of its own: ``python -m verl_gsd.trainer.job RUN/config.yaml``.

What verl's ``main_ppo`` does after composing, on a config that is composed and written down already.
"""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from verl_gsd.trainer.config import ConfigError

#: Exit code of a run that was refused before Ray started; what the log says after ``REFUSAL`` is the reason.
REFUSED = 64
REFUSAL = "verl-gsd refuses this config:"


def main(config_file: str) -> None:
    config = OmegaConf.load(config_file)
    OmegaConf.set_struct(config, True)  # as Hydra hands it to main_ppo

    from verl_gsd.trainer.validation import validate_with_verl

    try:
        validate_with_verl(config)
    except ConfigError as error:
        print(f"{REFUSAL}\n{error}", flush=True)
        sys.exit(REFUSED)

    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    run_ppo(config, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    main(sys.argv[1])
