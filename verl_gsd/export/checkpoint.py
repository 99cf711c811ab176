"""Finds the policy in a verl checkpoint, RUN/global_step_N, and checks that it is complete, without reading weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verl_gsd.checkpoints import step_of, world_size
from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.rundir import RunDirectory, is_rehearsal
from verl_gsd.state import saved_torch_version

#: verl writes this file next to the shards if they have LoRA adapters: rank, alpha and task type.
LORA_FILE = "lora_train_meta.json"


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` names: RUN/global_step_N itself, or the newest checkpoint of RUN.

    Raises:
        ConfigError: ``path`` is neither, or the run has no complete checkpoint.
    """
    if step_of(path) is not None:
        return path
    run = RunDirectory(path)
    if not path.is_dir() or not (run.config.is_file() or run.marker.is_file()):
        raise ConfigError(f"{path}: this is neither a run's folder nor a checkpoint. Use RUN or RUN/global_step_N")
    step = _latest(run)
    if step is None:
        raise ConfigError(
            f"{path}: this run has no complete checkpoint. Train it with trainer.save_freq above 0 and not above its "
            "number of steps"
        )
    return run.checkpoint(step)


def has_lora(checkpoint: Path) -> bool:
    """Whether the policy in RUN/global_step_N has LoRA adapters."""
    return (checkpoint / "actor" / LORA_FILE).is_file()


def shard_paths(checkpoint: Path) -> list[Path]:
    """The files with the policy's weights in RUN/global_step_N, by rank.

    Raises:
        ConfigError: ``checkpoint`` is not a checkpoint, is incomplete, or is of an unsupported kind. The message names
            the file.
    """
    step = step_of(checkpoint)
    if step is None:
        raise ConfigError(f"{checkpoint}: this is not a checkpoint. Use RUN/global_step_N")
    saved = _latest(RunDirectory(checkpoint.parent))
    last = "none" if saved is None else f"global_step_{saved}"
    if not checkpoint.is_dir():
        raise ConfigError(f"{checkpoint}: this folder does not exist. The run's last checkpoint is {last}")
    if saved is None or saved < step:
        raise ConfigError(f"{checkpoint}: it was not written completely. The run's last complete checkpoint is {last}")
    actor = checkpoint / "actor"
    if not actor.is_dir():
        raise ConfigError(
            f"{checkpoint}: it has no folder actor/. verl keeps only the last trainer.max_actor_ckpt_to_keep of them"
        )
    try:
        world = world_size(actor)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{actor / 'fsdp_config.json'}: cannot be read as an FSDP checkpoint ({error})") from error
    present = sum(1 for _ in actor.glob("model_world_size_*_rank_*.pt"))
    if world > present:
        raise ConfigError(
            f"{actor / 'fsdp_config.json'}: it names {world} ranks, and this folder has the weights of {present}, so "
            "the checkpoint is incomplete"
        )
    files = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    for file in [*files, actor / "huggingface" / "config.json"]:
        if not file.is_file() or not file.stat().st_size:
            raise ConfigError(f"{file}: it is missing or empty, so the checkpoint is incomplete")
        check_inside(file, checkpoint)
    return files


def check_inside(path: Path, checkpoint: Path) -> None:
    """Check that no symbolic link leads from ``path`` in a checkpoint to a place outside it.

    Whoever made the checkpoint could link to private files of the user who exports it, for example other weights. They
    would become part of the exported model.

    Raises:
        ConfigError: a link leads outside.
    """
    if not (real := path.resolve()).is_relative_to(checkpoint.resolve()):
        raise ConfigError(
            f"{path}: a link leads to {real}, outside the checkpoint. It was not read. If the checkpoint is yours, "
            "replace the link by what it leads to"
        )


def check_in_run(checkpoint: Path, distrust: str | None) -> None:
    """Check that RUN/global_step_N is no link out of RUN, if somebody else may have made the run.

    The link could lead to a checkpoint of the user who exports it. In the user's own runs, it may lead to another disk.

    Args:
        distrust: as in ``weights.Origins``.

    Raises:
        ConfigError: it is such a link.
    """
    if distrust is None or (real := checkpoint.resolve()).is_relative_to(checkpoint.parent.resolve()):
        return
    raise ConfigError(
        f"{checkpoint}: a link leads to {real}, outside the run, and {distrust}. It was not read. Use {real}, if "
        "that is the checkpoint that you want"
    )


def check_torch(checkpoint: Path) -> None:
    """Check that this environment's torch can read the shards of RUN/global_step_N.

    Raises:
        ConfigError: another minor version of torch saved them. A checkpoint that does not name a version is accepted.
    """
    saved_by, installed = saved_torch_version(checkpoint), version("torch")
    if saved_by is not None and _minor(saved_by) != _minor(installed):
        raise ConfigError(
            f"{checkpoint}: torch {saved_by} saved it, and this environment has torch {installed}. Only the same minor "
            f"version can read its shards. Run `verl-gsd export {checkpoint} MODEL` in the environment where it was "
            f"trained and use MODEL, or install torch {_minor(saved_by)} here"
        )


def file_identities(files: Sequence[Path]) -> dict[str, list[int]]:
    """By file name: size in bytes, and modification time in nanoseconds. Identifies weights without reading them."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _latest(run: RunDirectory) -> int | None:
    try:
        return run.latest_checkpoint()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run.marker}: cannot be read: {error}") from error


def _minor(torch: str) -> str:
    return ".".join(torch.split(".")[:2])


def check_not_rehearsal(checkpoint: Path, config: Any) -> None:
    """Check that a checkpoint is not one of a rehearsal.

    Args:
        config: the config of its run; None if there is none.

    Raises:
        ConfigError: it is.
    """
    if is_rehearsal(value_at(config or {}, "trainer.default_local_dir")):
        raise ConfigError(
            f"{checkpoint}: this is a rehearsal, which --rehearse made. Its weights are random and its scores are "
            "seeded. Use the checkpoint of a run"
        )
