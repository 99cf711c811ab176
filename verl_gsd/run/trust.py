"""Decides whether this user started a run here, before a resume uses what is in the run's folder.

A run's folder is a program: RUN/overrides.yaml can name code to import, commands to start, servers, and environment
variables whose values are sent to them. The owner of the files does not tell who made them, because what a user copies
or unpacks belongs to that user. Therefore each run is signed when it starts:

    RUN/signature              HMAC of the folder's path and of RUN/overrides.yaml, one line per content that is valid
    ~/.config/verl_gsd/key     the user's key, which only the user can read ($XDG_CONFIG_HOME replaces ~/.config)

The path is part of it, so that a copy of a run, which may have other checkpoints, does not count as the run itself.
Checkpoints are not signed: they are large, and other machines may write them. Their files must belong to this user, and
no other user may be able to write them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pwd
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from verl_gsd import file_access
from verl_gsd.errors import ConfigError
from verl_gsd.plain_data import parse_yaml
from verl_gsd.regular_files import open_regular, read_regular
from verl_gsd.rundir import RunDirectory
from verl_gsd.writing import atomic_write

_KEY_BYTES = 32
#: Words with these texts can name code, a command, a server or a variable. The message lists them first.
_SUSPICIOUS = re.compile(r"://|/|\$\{|path|url|_target_|_env|env_vars|code|class|cls|external|lib|executable|address")
#: At most this many words are shown, and this many characters of each.
_SHOWN_WORDS, _SHOWN_CHARACTERS = 100, 300


class UnusableKeyError(Exception):
    """The key file cannot be used. The message says why."""


def why_unsigned() -> str | None:
    """Why a run cannot be signed; None if the user has a key. The key is created if there is none."""
    try:
        _read_key(create=True)
    except UnusableKeyError as error:
        return str(error)
    return None


def write_words(run: RunDirectory, content: bytes) -> None:
    """Write RUN/overrides.yaml and sign it.

    A kill or a full disk at any moment leaves a file that is signed if it was before: the signature is valid for the
    old and the new content while the file is replaced. Without a key (``why_unsigned``), nothing is signed.

    Raises:
        OSError: the disk with the run is full, or the process may not write there.
    """
    run = RunDirectory(run.path.resolve())
    old = run.overrides.read_bytes() if run.overrides.is_file() else None
    with suppress(UnusableKeyError):
        key = _read_key(create=True)
        _write_signature(key, run, content, *([old] if old is not None and _is_signed(key, run, old) else []))
    with atomic_write(run.overrides) as temporary:
        temporary.write_bytes(content)
    sign(run, content)


def sign(run: RunDirectory, content: bytes) -> None:
    """Sign ``content``, which this process has just written to RUN/overrides.yaml. Without a key, nothing is signed.

    The file is not read again: somebody else may have replaced it.

    Raises:
        OSError: the disk with the run is full, or the process may not write there.
    """
    with suppress(UnusableKeyError):
        _write_signature(_read_key(create=True), RunDirectory(run.path.resolve()), content)


def stored_words(run: RunDirectory, checkpoint: Path | None, *, trusted: bool) -> list[str]:
    """The words that a run was started with, if it may be resumed.

    Args:
        checkpoint: the checkpoint that will be loaded; None if there is none.
        trusted: the user trusts this folder with the word ``trust=RUN``, whoever made it.

    Raises:
        ConfigError: the words cannot be read; or, unless ``trusted``, this user did not start the run or others can
            change it. The message lists what it would run.
    """
    content = _read_words(run)
    words = _parse(run.overrides, content)
    reason = None if trusted else _reason_for_distrust(RunDirectory(run.path.resolve()), checkpoint, content)
    if reason is not None:
        raise ConfigError(
            f"resume={run.path}: {reason}. A run's folder is a program. These words from {run.overrides.name} decide "
            f"which code, commands and servers it uses:\n{_listed(words)}\n"
            f"The checkpoint is part of the program too. If you trust whoever made this folder, add trust={run.path} "
            "to the command."
        )
    return words


def distrust(run: RunDirectory) -> str | None:
    """Why somebody else may have made the run, or may have changed its config; None if only this user can.

    The config of such a run can name private files and models of the user who reads it.
    """
    run = RunDirectory(run.path.resolve())
    try:
        content = read_regular(run.overrides, within=run.path)
    except OSError as error:
        return f"nothing shows that you started this run ({run.overrides}: {error.strerror})"
    try:
        return _reason_for_distrust(run, None, content) or file_access.changeable_folder(run.path) or None
    except OSError as error:
        return f"its files cannot be examined ({error.strerror})"


def real_run(path: Path) -> Path:
    """The run, file or folder that the user named, without symbolic links, if no other user chose where it is.

    Another user could offer a run that is a link to a private one of this user, whose model or figures the user would
    then publish as those of the other. Every command that takes a run asks this first, so that it ends with this
    message. ``open_regular`` applies the same rule to each file that it opens in a run, because another user may
    replace the run's folder by a link after this check.

    Returns:
        The path without symbolic links; ``path`` itself, absolute, if it does not exist. Then a later check says so.

    Raises:
        ConfigError: a link in ``path`` belongs to another user, who is not root, or another user could replace it.
            The message names the link, its owner and the path to use instead. Or the links are a circle, or this user
            may not search a folder.
    """
    try:
        real, problem = file_access.real_path(path)
    except (FileNotFoundError, NotADirectoryError):
        return path.absolute()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be examined: {error.strerror}. Use a path that you can read") from error
    if problem:
        raise ConfigError(
            f"{path}: it leads to {real}, and another user could have chosen that: {problem}. It was not read. Use "
            f"{real} instead, if that is what you want"
        )
    return real


def _read_words(run: RunDirectory) -> bytes:
    """The content of RUN/overrides.yaml, read once, so that what is checked is what is used."""
    try:
        return read_regular(run.overrides, within=run.path)
    except OSError as error:
        raise ConfigError(
            f"{run.overrides}: cannot be read: {error.strerror}. Repair the file, or start a new run."
        ) from error


def check_folder(path: Path) -> Path:
    """Check that nobody else can write the run's folder ``path`` or replace it while the run uses it.

    A folder that does not exist yet is checked by those above it.

    Returns:
        The folder without symbolic links. Only this name was checked: a link in ``path`` may be changed at any time.

    Raises:
        ConfigError: another user owns or can write the folder, or one above it that is not sticky.
    """
    folder = path.resolve()
    if problem := changeable_by_others(folder):
        raise ConfigError(
            f"trainer.default_local_dir={path}: {problem}. Who can do that can change the run while it trains. Set "
            "trainer.default_local_dir to a folder where only you can write. If you trust everyone who can write "
            f"there, add trust={path} to the command."
        )
    return folder


def changeable_by_others(folder: Path) -> str:
    """How another user could change what is in ``folder``, or replace it; an empty string if nobody can.

    Args:
        folder: without symbolic links. One that does not exist yet is checked by those above it.
    """
    if folder.is_dir():
        return file_access.changeable_folder(folder)
    above = next(above for above in folder.parents if above.is_dir())
    return file_access.open_default(above) or file_access.replaceable_folder(above)


def check_checkpoint(checkpoint: Path) -> Path:
    """Check the checkpoint that ``trainer.resume_from_path`` names on a line without ``resume=``.

    Nothing in it is signed, so that only its files, and the folders above it, can be checked.

    Returns:
        The checkpoint without symbolic links. Only this name was checked: a link in ``checkpoint`` may be changed at
        any time.

    Raises:
        ConfigError: a file belongs to another user, or other users can write or replace it; or as for ``real_run``.
    """
    folder = real_run(checkpoint)
    if not folder.is_dir():
        return folder  # a later check says that it does not exist
    reason = file_access.replaceable_folder(folder.parent) or next(_foreign_access(_files_below(folder), folder), None)
    if reason:
        raise ConfigError(
            f"trainer.resume_from_path={checkpoint}: {reason}. A checkpoint can contain code. If you trust whoever "
            "made it, copy it into a folder of your own and name the copy."
        )
    return folder


def key_file() -> Path:
    """The file with the user's key.

    Raises:
        UnusableKeyError: the user has no home directory.
    """
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:
        raise UnusableKeyError("you have no home directory for a key. Set XDG_CONFIG_HOME to a folder") from None
    return folder / "verl_gsd" / "key"


def _reason_for_distrust(run: RunDirectory, checkpoint: Path | None, content: bytes) -> str | None:
    """Why somebody else may have made the run, as in ``distrust``. Its path must be without symbolic links.

    The path is not resolved again. Whoever owns the folder could replace it by a link to a run of this user, whose
    signature would then be accepted.
    """
    try:
        is_own = _is_signed(_read_key(), run, content)
    except UnusableKeyError as error:
        return str(error)
    except FileNotFoundError:  # there is no key
        is_own = False
    if not is_own:
        return (
            f"nothing shows that you started this run in this folder (RUN/{run.signature.name} is missing or was not "
            f"made with {key_file()}). It may be of another user, copied, moved, edited, or of an older version. "
            "If you started it with another home directory, for example in a container or a pod, the key is in that "
            "directory. To keep one key for all of them, set XDG_CONFIG_HOME to a folder that they share"
        )
    paths = [run.path, run.overrides, run.config, run.marker]
    if checkpoint is not None:
        paths += _files_below(checkpoint)
    return next(_foreign_access(paths, run.path), None)


def _files_below(folder: Path) -> Iterator[Path]:
    """``folder``, and all folders and files in it. Links to folders are followed, as in loading a checkpoint."""
    visited: set[Path] = set()  # a link may lead back to a folder that contains it
    for name, folders, files in os.walk(folder, followlinks=True):
        parent = Path(name)
        visited.add(parent.resolve())
        folders[:] = [below for below in folders if (parent / below).resolve() not in visited]
        yield parent
        yield from (parent / file for file in files)


def _foreign_access(paths: Iterable[Path], folder: Path) -> Iterator[str]:
    """How users other than this one can change, or have changed, ``paths`` in ``folder``."""
    for path in paths:
        try:
            user = path.stat().st_uid
            if user not in (os.geteuid(), 0):
                yield f"{path} belongs to {_user_name(user)}"
            if file_access.is_open_to_others(path, os.W_OK):
                yield f"other users can write {path}. `chmod -R go-w {folder}` prevents this from now on"
            if path.is_symlink() and (problem := file_access.replaceable_target(path)):
                yield f"{path} is a link, and {problem}"
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"{path} cannot be examined ({error.strerror})"


def _user_name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"


def _signature(key: bytes, run: RunDirectory, content: bytes) -> str:
    """The signature of RUN/overrides.yaml for the run's path, which must be without symbolic links."""
    folder = os.fsencode(run.path)
    return hmac.new(key, b"%s\0%s" % (folder, content), hashlib.sha256).hexdigest()


def _is_signed(key: bytes, run: RunDirectory, content: bytes) -> bool:
    try:
        lines = read_regular(run.signature).splitlines()
    except OSError:
        return False
    expected = _signature(key, run, content).encode()
    return any(hmac.compare_digest(line, expected) for line in lines)


def _write_signature(key: bytes, run: RunDirectory, *contents: bytes) -> None:
    """Write a signature that is valid for each of ``contents``."""
    with atomic_write(run.signature) as temporary:
        temporary.write_text("".join(f"{_signature(key, run, content)}\n" for content in contents), encoding="utf-8")


def _read_key(*, create: bool = False) -> bytes:
    """The user's key.

    Raises:
        FileNotFoundError: there is none, and ``create`` is False.
        UnusableKeyError: it is damaged, others can read it, or it cannot be read or created.
    """
    path = key_file()
    try:
        if create and not path.exists():
            _create_key(path)
        with open_regular(path) as file:
            status, key = os.fstat(file.fileno()), file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not create:
            raise
        action = "read or created" if create else "read"
        raise UnusableKeyError(
            f"{path}: your key cannot be {action} ({error.strerror}). Set XDG_CONFIG_HOME to a folder that you can "
            "write"
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077 or len(key) != _KEY_BYTES:
        raise UnusableKeyError(
            f"{path}: this key is damaged, or other users can read it. Remove it; the next run creates another one"
        )
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        _write_key(temporary)
        try:
            os.link(temporary, path)  # unlike a rename, this keeps a key that another run has just created
        except FileExistsError:
            return
        except OSError:  # this file system has no hard links
            with suppress(FileExistsError):
                _write_key(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_key(path: Path) -> None:
    """Write a new key to a file that does not exist. After a crash of the machine, the file is not empty."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _parse(path: Path, content: bytes) -> list[str]:
    try:
        words = parse_yaml(content)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Repair the file, or start a new run.") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{path}: not a list of KEY=VALUE words. Resume another run, or start a new one.")
    return words


def _listed(words: list[str]) -> str:
    """The words, one per line, without control characters. Those that can name code or servers come first."""
    ordered = sorted(words, key=lambda word: not _SUSPICIOUS.search(word))
    lines = [f"  {word if word.isprintable() else ascii(word)}" for word in ordered[:_SHOWN_WORDS]]
    lines = [line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]} [cut]" for line in lines]
    more = len(words) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more in that file"] if more > 0 else [])])
