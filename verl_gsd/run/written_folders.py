"""Checks the folders outside its own to which a run writes: those of dumped responses and of a judge's scores.

Another user who can write such a folder could put a link there under the name of a file that the run writes. The run
would then overwrite a file of this user. That user could also change what the run reads again, for example scores.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.dotted_keys import dotted_items
from verl_gsd.errors import ConfigError
from verl_gsd.judge.cache import TRUSTED
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.run.trust import changeable_by_others
from verl_gsd.solve_rates.dumps import DUMP_KEYS

#: The end of the keys that name the file of a judge's scores.
_CACHE = "judge.cache"


def fix_written_folders(config: DictConfig, run: Path, trust: Path | None) -> None:
    """Check the folders, and replace their paths in ``config`` by those without symbolic links.

    Args:
        config: the composed config. Paths with a scheme are left for later checks.
        run: the run's folder without symbolic links. It was checked, with all that is in it.
        trust: the folder that the user trusts; None if there is none.

    Raises:
        ConfigError: another user owns or can write a folder, or could replace it, and it is not in ``trust``.
    """
    for key, path in list(_written_paths(config)):
        real = path.resolve()
        folder = _folder(key, real)
        is_trusted = trust is not None and folder.is_relative_to(trust.resolve())
        if not is_trusted and not folder.is_relative_to(run):
            _check(key, path, folder)
        if is_trusted and key.endswith(_CACHE):
            os.environ[TRUSTED] = str(real)  # the cache checks its file again, in the process that judges
        with open_dict(config):
            OmegaConf.update(config, key, str(real))


def create_written_folders(config: DictConfig, run: Path) -> None:
    """Create the folders just before a run, and check them again.

    Another user could have created a folder that was not there at the first check, or a link in its place.

    Args:
        config: the config after ``fix_written_folders``.
        run: the run's folder.

    Raises:
        ConfigError: as for ``fix_written_folders``; or a folder cannot be created.
    """
    for key, path in _written_paths(config):
        folder = _folder(key, path)
        if folder.is_relative_to(run):
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{key}={path}: {folder} cannot be created: {error.strerror}. Set {key} to a place where you can write."
            ) from error
        _check(key, path, folder)
        if path.resolve() != path:
            raise ConfigError(
                f"{key}={path}: the path leads through a symbolic link that was not there before. Set "
                f"{shlex.quote(f'{key}={path.resolve()}')}."
            )


def _written_paths(config: DictConfig) -> Iterator[tuple[str, Path]]:
    """Key and absolute path, for each key that names a local place to which the run writes."""
    section = OmegaConf.select(config, "algorithm.gsd")
    entries = dotted_items(OmegaConf.to_container(section)) if OmegaConf.is_dict(section) else ()
    caches = (f"algorithm.gsd.{key}" for key, _ in entries if f".{key}".endswith(f".{_CACHE}"))
    for key in (*DUMP_KEYS, *caches):
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)  # a later check reports the failure
        if isinstance(value, str) and value and scheme_of(value) is None:
            # verl takes a ~ in its own keys for the name of a folder.
            yield key, (Path(value).expanduser() if key.endswith(_CACHE) else Path(value)).absolute()


def _folder(key: str, path: Path) -> Path:
    return path.parent if key.endswith(_CACHE) else path


def _check(key: str, path: Path, folder: Path) -> None:
    if problem := changeable_by_others(folder):
        raise ConfigError(
            f"{key}={path}: {problem}. Who can do that can change what the run writes there, or make it overwrite a "
            f"file of yours. Set {key} to a place in the run's folder, or to one where only you can write. If you "
            "trust everyone who can write there, add trust=FOLDER to the command of a new run, with a FOLDER that "
            "contains both this place and the run's folder."
        )
