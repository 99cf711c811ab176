"""One training run as a process of its own: ``python -m verl_gsd.run.job RUN/config.yaml LAUNCHER``, a process id.

What verl's ``main_ppo`` does after composing, on a config that is composed and written down already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.cpu import before_verl
from verl_gsd.cpu.forkserver import die_with_parent, workers_forked
from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock
from verl_gsd.run.messages import MessageWriter
from verl_gsd.rundir import RunDirectory

#: Exit code of a run that was refused before Ray started; what the log says after ``REFUSAL`` is the reason.
REFUSED = 64
REFUSAL = "verl-gsd refuses this config:"


#: What verl adds to the environment of its workers, where it is not set, and vLLM reads on import.
#: tests/contract/test_imports.py compares.
VERLS_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARN",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "VLLM_BATCH_INVARIANT": "0",
}


def main(config_file: str, launcher: int) -> None:
    die_with_parent(launcher)  # train for nobody: nothing else ends a run that has left its session
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)  # as Hydra hands it to main_ppo
    if cluster_lock.is_job():
        cluster_lock.join(config)
    with _refusals():
        joins = cluster_lock.joins(config)
    if not joins:
        # On a cluster of this run's own nobody restarts Ray's control service. Ray's default is 60 s.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
    with _workers(config, joins):
        from verl.utils.device import auto_set_device

        from verl_gsd.run.checks.with_verl import validate_with_verl

        auto_set_device(config)  # as main_ppo does

        with _refusals():
            messages = validate_with_verl(config)
        run = RunDirectory(Path(config.trainer.default_local_dir))
        writer = MessageWriter(run.messages(max(run.attempts(), default=1)))
        for message in messages:
            writer.write(message.kind, message.text)

        from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

        run_ppo(config, cluster_lock.ClusterLock(TaskRunnerV1, config) if joins else TaskRunnerV1)


@contextmanager
def _refusals() -> Iterator[None]:
    """Print the reason of a ConfigError and exit: the launcher reads the reason from the log."""
    try:
        yield
    except ConfigError as error:
        print(f"{REFUSAL}\n{error}", flush=True)
        sys.exit(REFUSED)


@contextmanager
def _workers(config: DictConfig, joins: bool) -> Iterator[None]:
    """Let Ray fork its workers from this process's fork server on a CPU.

    Ray starts them in its own way if there are GPUs, if the user names an interpreter, or if the run ``joins`` a
    cluster: the cluster's other nodes cannot reach the fork server, and its workers would end with this run.
    """
    runtime_env = config.ray_kwargs.ray_init.runtime_env
    if os.environ.get("VERL_GSD_CPU") != "1" or runtime_env.py_executable is not None or joins:
        yield
        return
    before_verl.set_environment()
    environment = {name: value for name, value in VERLS_ENVIRONMENT.items() if name not in os.environ}
    environment |= OmegaConf.to_container(runtime_env).get("env_vars") or {}
    with workers_forked(environment={name: str(value) for name, value in environment.items()}) as command:
        runtime_env.py_executable = command
        try:
            yield
        finally:
            import ray

            ray.shutdown()  # before the server: it knows its workers, which nothing else can tell are ours


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
