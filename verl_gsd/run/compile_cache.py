"""Keeps other users out of the folders from which torch's compiler loads code.

torch keeps compiled graphs in /tmp/torchinductor_USER and unpickles them from there, whoever owns that folder. The
variable TORCHINDUCTOR_CACHE_DIR moves them, but not all of it: precompiled headers and some tuning results stay in the
folder named after the user. Therefore this module takes that folder before another user does, with mode 0700. /tmp is
sticky, so nobody else can then replace it.

vLLM's allocator for NCCL's symmetric memory (VLLM_USE_NCCL_SYMM_MEM, off by default) builds a library directly in the
folder for temporary files and loads it from there. It is used only if that folder is the user's own.

torch sets the variable to its own folder when ``torch._dynamo`` is imported, which importing verl does. That value
therefore counts as not set.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import stat
import sys
import tempfile
from pathlib import Path

from verl_gsd import file_access, private_folders
from verl_gsd.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
#: "0" switches off the precompiled headers, which are in torch's own folder whatever ``VARIABLE`` says.
HEADERS = "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
#: Not "0": vLLM loads ``nccl_allocator.so`` from the folder for temporary files.
ALLOCATOR = "VLLM_USE_NCCL_SYMM_MEM"


def torchs_folder() -> Path:
    """The folder that torch uses without ``VARIABLE``: torchinductor_USER in TMPDIR, or in /tmp."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user has no name, for example in a container
        user = f"uid_{os.getuid()}"
    name = re.sub(r'[\\/:*?"<>|]', "_", user)
    return Path(tempfile.gettempdir()) / f"torchinductor_{name}"


def protect() -> None:
    """Make torch's compiler, in this process and in those that it starts, use folders that nobody else can write.

    A value of ``VARIABLE`` that the user set is kept. This process holds torch's own folder until it ends, which also
    keeps programs from removing it that clean /tmp.

    Raises:
        ConfigError: another user owns or could replace one of the folders, or could write vLLM's library.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen and Path(chosen).absolute() == torchs_folder().absolute():
        chosen = None
    _leave_links()
    folder = torchs_folder()
    os.environ[VARIABLE] = _check_chosen(chosen) if chosen else str(folder)
    if problem := _take(folder):
        raise ConfigError(
            f"{folder}: {problem}. torch's compiler runs code from this folder, so that another user could run code as "
            "you. Ask its owner or an administrator to remove it, or set TMPDIR to a folder of your own."
        )
    if problem := _allocator_problem():
        raise ConfigError(problem)


def protect_or_warn() -> None:
    """As ``protect``, for a process of verl that cannot be rejected. Unsafe folders are replaced, with a warning."""
    if problem := _allocator_problem():
        os.environ[ALLOCATOR] = "0"
        logger.warning("verl-gsd: %s is switched off in this process. %s", ALLOCATOR, problem)
    try:
        protect()
    except ConfigError as error:
        os.environ[VARIABLE] = private_folders.hold_new()
        os.environ[HEADERS] = "0"
        if torchs_config := sys.modules.get("torch._inductor.config"):  # it read the variable when it was imported
            torchs_config.cpp_cache_precompile_headers = False  # type: ignore[attr-defined]
        logger.warning("verl-gsd: this process keeps compiled code in %s instead. %s", os.environ[VARIABLE], error)


def _allocator_problem() -> str:
    """Why vLLM's allocator could load a library of another user; an empty string if it cannot, or is off."""
    value, folder = os.environ.get(ALLOCATOR) or "0", Path(tempfile.gettempdir()).resolve()
    if value == "0" or not (problem := file_access.changeable_folder(folder)):
        return ""
    return (
        f"{ALLOCATOR}={value}: vLLM runs code from {folder}/nccl_allocator.so, but {problem}. Set TMPDIR to a folder "
        f"of your own, or run `unset {ALLOCATOR}`."
    )


def _leave_links() -> None:
    """Make this process and its children use the folder for temporary files by its name without symbolic links.

    A link in the name may be changed after the check.
    """
    named = tempfile.gettempdir()
    if (folder := os.path.realpath(named)) != named:
        os.environ["TMPDIR"] = tempfile.tempdir = folder


def _check_chosen(chosen: str) -> str:
    """Create the user's folder, and return its name without symbolic links, which may be changed after the check.

    Raises:
        ConfigError: others can write in it or replace it.
    """
    folder = Path(chosen).resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # While it did not exist, another user could have put a link in the place of a folder above it.
        problem = file_access.changeable_folder(folder) if folder.resolve() == folder else "a link leads to it"
    except OSError as error:
        problem = f"it cannot be used ({error.strerror})"
    if problem:
        raise ConfigError(
            f"{VARIABLE}={chosen}: torch's compiler runs code from this folder, but {problem}. Set {VARIABLE} to a "
            f"folder of your own, or run `unset {VARIABLE}`."
        )
    return str(folder)


def _take(folder: Path) -> str:
    """Create ``folder`` with mode 0700, or close it to others, and hold it. Returns why that is impossible, or ""."""
    try:
        if problem := file_access.replaceable_folder(folder.parent):
            return problem
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            folder.chmod(0o700)  # torch creates it with the usual mode
        if problem := private_folders.problem(str(folder)):
            return problem
        private_folders.hold(str(folder))
    except FileExistsError:
        return "it is not a folder"
    except (OSError, private_folders.UnsafeFolderError) as error:
        return f"it cannot be used ({error})"
    return ""
