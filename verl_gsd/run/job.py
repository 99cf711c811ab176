"""The process of one training run: ``python -m verl_gsd.run.job RUN/config.yaml DIGEST LAUNCHER_PID``.

It does what verl's ``main_ppo`` does after composing the config, but reads the config from a file. DIGEST is the
SHA-256 of what the launcher wrote: a config is a program, and others may be able to write in the run's folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.cpu import before_verl
from verl_gsd.cpu.forkserver import die_with_parent, workers_forked
from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock, own_cluster
from verl_gsd.run.messages import MessageWriter
from verl_gsd.rundir import RunDirectory

#: Exit code if the config was rejected before Ray started. The reason follows ``REJECTION_MARK`` in the log.
EXIT_REJECTED = 64
REJECTION_MARK = "verl-gsd rejects this config:"

#: Variables that verl sets in the environment of its workers if they are not set, and that vLLM reads on import.
#: tests/contract/test_imports.py compares them with verl.
VERLS_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARN",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "VLLM_BATCH_INVARIANT": "0",
}


def digest(content: bytes) -> str:
    """The SHA-256 of a config file, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_config(path: Path, expected: str) -> DictConfig:
    """The config in the file ``path``, which is read once.

    Args:
        expected: the digest of the content that was written.

    Raises:
        ConfigError: the file has other content.
    """
    content = path.read_bytes()
    if digest(content) != expected:
        raise ConfigError(
            f"{path}: this file is not what verl-gsd has just written, so that somebody has changed it since. Nothing "
            "in it was used. Set trainer.default_local_dir to a folder where only you can write."
        )
    config = OmegaConf.create(content.decode())
    assert isinstance(config, DictConfig)
    return config


def main(config_file: str, expected: str, launcher: int) -> None:
    die_with_parent(launcher)  # the run has its own session, so that nothing else would end it
    with _exit_if_rejected():
        config = read_config(Path(config_file), expected)
    OmegaConf.set_struct(config, True)  # as in the config that Hydra passes to main_ppo
    if cluster_lock.is_job():
        cluster_lock.join(config)
    with _exit_if_rejected():
        joins, note = set_cluster(config)
    with _workers(config, joins):
        from verl.utils.device import auto_set_device

        from verl_gsd.run.checks.with_verl import validate_with_verl

        auto_set_device(config)  # as main_ppo does

        with _exit_if_rejected():
            messages = validate_with_verl(config)
        run = RunDirectory(Path(config.trainer.default_local_dir))
        writer = MessageWriter(run.messages(max(run.attempts(), default=1)))
        if note:
            writer.write("note", note)
        for message in messages:
            writer.write(message.kind, message.text)

        from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

        run_ppo(config, cluster_lock.ClusterLock(TaskRunnerV1, config) if joins else TaskRunnerV1)


def set_cluster(config: DictConfig) -> tuple[bool, str]:
    """Set up the config for the running cluster that the run joins, or for a cluster of its own.

    Returns:
        Whether the run joins a cluster, and a note for the user or an empty string.

    Raises:
        ConfigError: Ray's address leads to no cluster or to one of another user, or a cluster of its own would be open
            to others.
    """
    address = cluster_lock.address_to_join(config)
    if address is not None:
        with open_dict(config):
            config.ray_kwargs.ray_init.address = address  # Ray would look again, and could find another cluster
        return True, ""
    # Seconds to wait for Ray's control service to come back. In a cluster of this run, nothing restarts it. Ray's
    # default is 60 s.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
    return False, own_cluster.protect(config)


@contextmanager
def _exit_if_rejected() -> Iterator[None]:
    """Print the message of a ConfigError and exit. The launcher reads the message from the log."""
    try:
        yield
    except ConfigError as error:
        print(f"{REJECTION_MARK}\n{error}", flush=True)
        sys.exit(EXIT_REJECTED)


@contextmanager
def _workers(config: DictConfig, joins: bool) -> Iterator[None]:
    """Run a fork server from which Ray starts its workers on a CPU.

    It is not used on GPUs, if the user sets an interpreter, or if the run ``joins`` a cluster. Other nodes of a cluster
    cannot reach the fork server, and the cluster's workers would end with this run.
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

            # Before the fork server ends, because only the server knows which workers belong to this run.
            ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
