"""Finds the policy in a verl checkpoint, RUN/global_step_N, and checks that it is complete, without reading weights.

Opens it so that nothing outside it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from verl_gsd.checkpoints import attempt_of, damage, step_of, world_size
from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.regular_files import open_regular, place_of, read_limited
from verl_gsd.run.trust import real_run
from verl_gsd.rundir import RunDirectory, is_rehearsal
from verl_gsd.state import saved_torch_version

#: verl writes this file of a checkpoint if its policy has LoRA adapters: rank, alpha and task type.
LORA_FILE = "actor/lora_train_meta.json"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
    if saved is None or (saved < step and not _is_of_earlier_attempt(checkpoint)):
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
    return files


def _is_of_earlier_attempt(checkpoint: Path) -> bool:
    """Whether a checkpoint after the last one is complete: a later attempt resumed from an earlier step."""
    attempts = RunDirectory(checkpoint.parent).attempts()
    own = attempt_of(checkpoint)
    return own is not None and own < max(attempts, default=0) and damage(checkpoint) is None


@dataclass(frozen=True)
class OpenCheckpoint:
    """RUN/global_step_N as an open folder. It stays the same folder, whatever its name leads to later.

    Whoever made the checkpoint could link from it to private files of the user who exports it, for example to other
    weights, which would become part of the exported model. Such a link may also appear after a check. So each file is
    opened once by way of this folder, the kernel tells where the open file is, and it is read as it was opened.

    Attributes:
        path: its name, for messages.
        descriptor: of the open folder.
    """

    path: Path
    descriptor: int

    def open(self, name: str) -> BinaryIO:
        """Open the regular file ``name``, a path in the checkpoint.

        Raises:
            ConfigError: a link leads from there out of the checkpoint.
            OSError: it cannot be opened, or is not a regular file.
        """
        with ExitStack() as closing:
            file = closing.enter_context(open_regular(name, folder=self.descriptor))
            self._check_inside(name, file.fileno())
            closing.pop_all()
            return file

    def read(self, name: str) -> bytes:
        """The content of the small file ``name``, a path in the checkpoint.

        Raises:
            ConfigError: a link leads from there out of the checkpoint.
            OSError: it cannot be read, is not a regular file, or is too large.
        """
        with self.open(name) as file:
            return read_limited(file)

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """Open the folder ``name``, a path in the checkpoint. Yields its descriptor.

        Raises:
            ConfigError: a link leads from there out of the checkpoint.
            OSError: it cannot be opened, or is not a folder.
        """
        descriptor = os.open(name, _FOLDER, dir_fd=self.descriptor)
        try:
            self._check_inside(name, descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Whether there is a file or folder ``name``, a path in the checkpoint."""
        return os.access(name, os.F_OK, dir_fd=self.descriptor)

    def _check_inside(self, name: str, descriptor: int) -> None:
        if not (place := place_of(descriptor)).is_relative_to(place_of(self.descriptor)):
            raise ConfigError(
                f"{self.path / name}: a link leads to {place}, outside the checkpoint. It was not read. If the "
                "checkpoint is yours, replace the link by what it leads to"
            )


@contextmanager
def open_checkpoint(checkpoint: Path, distrust: str | None) -> Iterator[OpenCheckpoint]:
    """Open RUN/global_step_N.

    If somebody else may have made the run, RUN/global_step_N must not be a link out of RUN. It could lead to a
    checkpoint of the user who exports it. In the user's own runs, it may lead to another disk.

    Args:
        distrust: as in ``weights.Origins``.

    Raises:
        ConfigError: it is such a link; another user chose where the run is (``trust.real_run``); or it cannot be
            opened.
    """
    with ExitStack() as closing:
        try:
            run = os.open(checkpoint.parent, _FOLDER)
            closing.callback(os.close, run)
            descriptor = os.open(checkpoint.name, _FOLDER, dir_fd=run)
            closing.callback(os.close, descriptor)
        except OSError as error:
            raise ConfigError(f"{checkpoint}: cannot be opened: {error.strerror}") from error
        # After opening: the owner of the run may have replaced its folder by a link just before.
        if real_run(checkpoint.parent) != place_of(run):
            raise ConfigError(
                f"{checkpoint}: somebody replaced the run's folder while it was opened. It was not read. Copy the run "
                "and use the copy"
            )
        place = place_of(descriptor)
        if distrust is not None and not place.is_relative_to(place_of(run)):
            raise ConfigError(
                f"{checkpoint}: a link leads to {place}, outside the run, and {distrust}. It was not read. Use {place}"
                ", if that is the checkpoint that you want"
            )
        yield OpenCheckpoint(checkpoint, descriptor)


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
