"""Protects the Ray cluster that a run starts for itself from other users of the machine.

Two of Ray's defaults let other users in:

- Ray writes the cluster's token into ~/.ray/auth_token, which others can read if they can enter the home folder. A
  cluster of one run gets its own token in the environment of the run's processes, and nothing is written to a file.
- Ray makes its session folder writable for everyone. It holds sockets and the packages that workers import. It is
  therefore placed in a folder that only this user can enter: ray_UID in RAY_TMPDIR (or TMPDIR, or /tmp).

A cluster without a token is not started: everyone who reaches it can run code in it.

Session folders are not removed after the run, because error messages point to the logs in them.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import file_access, private_folders
from verl_gsd.errors import ConfigError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: Bytes of the path of Ray's session in ``_temp_dir``, with the longest of its sockets. Linux allows 107 in all.
_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_LONGEST = 107 - len(_SOCKET)


def ray_folder() -> Path:
    """The folder for Ray's files: RAY_TMPDIR if it is set, otherwise TMPDIR, otherwise /tmp."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def private_folder() -> Path:
    """The folder for the sessions of this user's clusters. It may not exist yet."""
    return ray_folder() / f"ray_{os.geteuid()}"


def protect(config: DictConfig) -> str:
    """Set up the config, and the environment of this process, for starting a cluster with ``ray.init``.

    A token or a ``_temp_dir`` that the user set is kept.

    Returns:
        A note for the user if another user has taken the name of the usual folder; otherwise an empty string.

    Raises:
        ConfigError: the cluster would have no token, the session folder's path is too long for sockets, or other users
            can enter or replace the folder.
    """
    set_token()
    init = config.ray_kwargs.ray_init
    with open_dict(init):
        init.address = "local"  # with another folder, Ray would look for a running cluster again, at another place
        if OmegaConf.select(init, "_temp_dir"):
            return ""
        init._temp_dir = session_folder()
    folder = Path(init._temp_dir).parent
    if folder.name == private_folder().name:
        return ""
    return (
        f"Another user has taken {private_folder()}, so this run's Ray session is in {folder}. Set RAY_TMPDIR to a "
        "folder of your own to avoid this."
    )


def open_cluster_problem() -> str:
    """Why a cluster that this process starts would have no token, and the fix; an empty string if it would have one.

    Ray requires a token only if RAY_AUTH_MODE is "token" or not set. Every other value, also an empty one, opens its
    control service on all interfaces.
    """
    mode = os.environ.get(MODE)
    if mode is None or mode.lower() == "token":
        return ""
    return (
        f"{MODE}={mode}: the run's Ray cluster would have no token, so that everyone who reaches this machine could "
        f"run code on it as you. No option allows this. Run `unset {MODE}`."
    )


def set_token() -> None:
    """Set a new token in this process's environment, for ``ray.init`` and for the processes that it starts.

    A token that the user set is kept, unless it is in a file that others can read: Ray prefers the variable to a file.

    Raises:
        ConfigError: RAY_AUTH_MODE makes Ray ignore the token.
    """
    if problem := open_cluster_problem():
        raise ConfigError(problem)
    if os.environ.get(TOKEN) or (os.environ.get(TOKEN_PATH) and not token_file_problem(token_file())):
        return
    os.environ[TOKEN] = secrets.token_hex(32)


def session_folder() -> str:
    """Ray's ``_temp_dir``, in a folder that only this user can enter. This process holds that folder until it ends.

    Ray makes ``_temp_dir`` itself writable for everyone, which is why it cannot be the private folder. If another user
    has taken the name of the private folder, which everyone can do in /tmp, it is a new folder with a random name.

    Raises:
        ConfigError: the path is too long for sockets, or other users can enter or replace the folder.
    """
    base = ray_folder().resolve()  # without links, which others could change after the check
    folder = base / private_folder().name
    _check_length(folder)
    try:
        base.mkdir(parents=True, exist_ok=True)
        if problem := file_access.replaceable_folder(base):
            raise ConfigError(
                f"RAY_TMPDIR={ray_folder()}: Ray's session cannot be placed there, because {problem} and could replace "
                "the session. Set RAY_TMPDIR to a folder of your own in a folder where only you and root can write, or "
                "in /tmp."
            )
        if _is_anothers(folder):
            folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}_", dir=base))
            _check_length(folder)
        private_folders.hold(str(folder))
    except (private_folders.UnsafeFolderError, OSError) as error:
        raise ConfigError(
            f"RAY_TMPDIR={ray_folder()}: Ray's session cannot be placed there. {error} You can also set RAY_TMPDIR to "
            "a folder of your own."
        ) from error
    return str(folder / "ray")


def _check_length(folder: Path) -> None:
    if len(os.fsencode(folder / "ray")) > _LONGEST:
        raise ConfigError(
            f"RAY_TMPDIR={ray_folder()}: Ray's sockets in this folder would have paths of more than 107 characters. "
            "Set RAY_TMPDIR to a folder with a shorter path."
        )


def _is_anothers(path: Path) -> bool:
    try:
        return path.lstat().st_uid != os.geteuid()
    except FileNotFoundError:
        return False


def token_file() -> Path:
    """The file from which Ray reads the token of a cluster that it joins, if RAY_AUTH_TOKEN is not set."""
    return Path(os.environ.get(TOKEN_PATH) or "~/.ray/auth_token").expanduser()


def token_problem() -> str:
    """Why the token for joining a cluster is not secret, and the fix; an empty string if it is, or if none is used."""
    if os.environ.get(TOKEN) or os.environ.get(MODE, "").lower() == "disabled":
        return ""
    return token_file_problem(token_file())


def token_file_problem(path: Path) -> str:
    """Why the token in ``path`` is not secret, and the fix; an empty string if it is, or if there is no such file.

    A file of another owner is not a problem: it is mounted into a container, and its owner decides who can read it.
    """
    try:
        status = path.stat()
        if status.st_uid != os.geteuid() or not file_access.is_open_to_others(path, os.R_OK | os.W_OK):
            return ""
        folders = path.resolve().parents  # a link, for example ~/.ray, may lead into folders that others can enter
        reachable = all(file_access.is_open_to_others(folder, os.X_OK) for folder in folders)
    except OSError:
        return ""
    if not reachable:
        return ""
    return (
        f"{path} has mode {status.st_mode & 0o777:04o}, so other users of this machine can read the token and run code "
        f"in the cluster as you. Run `chmod 600 {path}`."
    )
