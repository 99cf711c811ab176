"""Protects the Ray cluster that a run starts for itself from other users of the machine.

Two of Ray's defaults let other users in:

- Ray writes the cluster's token into ~/.ray/auth_token, which others can read if they can enter the home folder. A
  cluster of one run gets its own token in the environment of the run's processes, and nothing is written to a file.
- Ray makes its session folder writable for everyone. It holds sockets and the packages that workers import. It is
  therefore placed in a folder that only this user can enter: ray_UID in RAY_TMPDIR (or TMPDIR, or /tmp).

Session folders are not removed after the run, because error messages point to the logs in them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import private_folders
from verl_gsd.errors import ConfigError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: Bytes of the path of Ray's session in ``_temp_dir``, with the longest of its sockets. Linux allows 107 in all.
_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_LONGEST = 107 - len(_SOCKET)
_LOCALHOST = (None, "localhost", "127.0.0.1", "::1")


def ray_folder() -> Path:
    """The folder for Ray's files: RAY_TMPDIR if it is set, otherwise TMPDIR, otherwise /tmp."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def private_folder() -> Path:
    """The folder for the sessions of this user's clusters. It may not exist yet."""
    return ray_folder() / f"ray_{os.geteuid()}"


def protect(config: DictConfig) -> None:
    """Set up the config, and the environment of this process, for starting a cluster with ``ray.init``.

    A token, ``RAY_AUTH_MODE=disabled`` or a ``_temp_dir`` that the user set is kept.

    Raises:
        ConfigError: the session folder's path is too long for sockets, or other users can enter the folder.
    """
    set_token()
    init = config.ray_kwargs.ray_init
    with open_dict(init):
        init.address = "local"  # with another folder, Ray would look for a running cluster again, at another place
        init._temp_dir = OmegaConf.select(init, "_temp_dir") or session_folder()


def set_token() -> None:
    """Set a new token in this process's environment, for ``ray.init`` and for the processes that it starts.

    Ray reads the token when it starts a cluster, and then uses it unless RAY_AUTH_MODE is "disabled".
    """
    if not os.environ.get(TOKEN) and not os.environ.get(TOKEN_PATH):
        os.environ[TOKEN] = secrets.token_hex(32)


def session_folder() -> str:
    """Ray's ``_temp_dir``, in a folder that only this user can enter. This process holds that folder until it ends.

    Ray makes ``_temp_dir`` itself writable for everyone, which is why it cannot be the private folder.

    Raises:
        ConfigError: the path is too long for sockets, or other users can enter the folder.
    """
    folder = private_folder().absolute() / "ray"
    if len(os.fsencode(folder)) > _LONGEST:
        raise ConfigError(
            f"RAY_TMPDIR={ray_folder()}: Ray's sockets in this folder would have paths of more than 107 characters. "
            "Set RAY_TMPDIR to a folder with a shorter path."
        )
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        private_folders.hold(str(folder.parent))
    except (private_folders.UnsafeFolderError, OSError) as error:
        raise ConfigError(
            f"RAY_TMPDIR={ray_folder()}: Ray's session cannot be placed there. {error} You can also set RAY_TMPDIR to "
            "a folder of your own."
        ) from error
    return str(folder)


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
        if status.st_uid != os.geteuid() or not status.st_mode & 0o077:
            return ""
        reachable = all(folder.stat().st_mode & 0o011 for folder in path.absolute().parents)
    except OSError:
        return ""
    if not reachable:
        return ""
    return (
        f"{path} has mode {status.st_mode & 0o777:04o}, so other users of this machine can read the token and run code "
        f"in the cluster as you. Run `chmod 600 {path}`."
    )


def open_dashboard_problem(config: DictConfig) -> str:
    """Why the dashboard of a cluster that this run starts is open to others; an empty string if it is not."""
    init = config.ray_kwargs.ray_init
    host, enabled = OmegaConf.select(init, "dashboard_host"), OmegaConf.select(init, "include_dashboard")
    if os.environ.get(MODE, "").lower() != "disabled" or host in _LOCALHOST or enabled is False:
        return ""
    return (
        f"ray_kwargs.ray_init.dashboard_host={host}: with RAY_AUTH_MODE=disabled, everyone who reaches this address "
        f"can run code on this machine. Run `unset {MODE}`, or remove dashboard_host."
    )
