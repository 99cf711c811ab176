"""Hooks in verl's modules that cannot break verl.

Everybody who has this package installed loads its plugin, also for runs that do not use it. A hook that does not fit
the installed verl must therefore not end the import of verl's module. ``when_imported`` catches its exception, logs one
warning per process, and keeps the reason. ``reject_if_failed`` then rejects the runs that use this package.

A patch changes nothing if a part of what it assumes does not hold (``verl_contract.py``). Some patches have parts in
several processes, and one part without the others would break every run.

A hook can fail in one process only, for example because a node has another version of a package. Without a patch that
keeps other users out, such a process must not take part in a run that uses this package. Its ``entrances``, functions
of verl's module through which it would take part, then raise. In other runs they do what verl's do.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import wrapt

from verl_gsd.errors import ConfigError
from verl_gsd.run import our_runs, verl_contract

logger = logging.getLogger(__name__)

#: What failed in this process -> the exception, in their order.
_failures: dict[str, str] = {}


def when_imported(
    module: str, hook: Callable[[Any], object], patch: str | None = None, entrances: Sequence[str] = ()
) -> None:
    """Call ``hook`` with verl's ``module`` when it is imported. Its exception does not reach verl.

    Args:
        patch: our file in ``verl_contract.PATCHED``. The hook runs only if all that it assumes holds.
        entrances: ``function`` or ``Class.method`` of the module, for a patch that keeps other users out. If the hook
            fails, they raise ``UnprotectedProcessError`` in the processes of runs that use this package.
    """
    part = f"the hook in {module}"

    def run(imported: Any) -> None:
        with contained(part):
            try:
                if patch is not None and (problem := patch_problem(patch)):
                    raise UnmetAssumptionError(problem)
                hook(imported)
            except Exception as error:
                for entrance in entrances:
                    _close(imported, entrance, f"{part} failed ({type(error).__name__}: {error})")
                raise

    wrapt.when_imported(module)(run)


def _close(module: Any, entrance: str, reason: str) -> None:
    """Make ``entrance`` raise in runs that use this package. Nothing is changed if verl does not have it any more."""
    path, _, name = entrance.rpartition(".")
    owner = getattr(module, path, None) if path else module
    original = getattr(owner, name, None)
    if not inspect.isroutine(original):
        return

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if our_runs.is_marked():
            raise UnprotectedProcessError(
                f"verl-gsd does not fit verl {_verl_version()} in this process: {reason}. Without this patch, other "
                "users could send data or code to the run, so the process does not take part in it. Install the same "
                "versions of verl and verl-gsd on every node, and run verl-gsd contract there."
            )
        return original(*args, **kwargs)

    setattr(owner, name, guarded)


class UnmetAssumptionError(Exception):
    """verl has changed what a patch replaces or reads."""


class UnprotectedProcessError(RuntimeError):
    """A process of a run lacks a patch that keeps other users out. The message says why."""


@functools.cache
def patch_problem(patch: str) -> str:
    """What verl has changed that our file ``patch`` replaces or reads; an empty string if it has changed nothing."""
    return _problem([assumption for assumption in verl_contract.PATCHED if assumption.used_in == patch])


def reject_if_unfit() -> None:
    """As ``reject_if_failed``, and check what our trainer and the patches of all processes assume of verl.

    Raises:
        ConfigError: lists what failed or does not fit.
    """
    with contained("what a run needs"):
        if problem := _problem([one for one in verl_contract.assumptions("trainer") if one.stops_runs]):
            raise UnmetAssumptionError(problem)
    reject_if_failed()


def _problem(expected: list[verl_contract.Assumption]) -> str:
    broken = verl_contract.check(verl_contract.source_of(), expected)
    return "; ".join(f"{one.assumption}: {one.problem}" for one in broken)


@contextmanager
def contained(part: str) -> Iterator[None]:
    """Catch and keep an exception of ``part`` of this package, which runs in a process of verl.

    Args:
        part: what runs in this context, for the message.
    """
    try:
        yield
    except Exception as error:  # the cause may be any change in verl
        is_first = not _failures
        _failures.setdefault(part, f"{type(error).__name__}: {error}")
        if is_first:
            logger.warning(
                "verl-gsd does not fit verl %s: %s failed (%s). Runs that do not use verl-gsd are not affected. Runs "
                "that use it are rejected. Run verl-gsd contract to list what has changed in verl.",
                _verl_version(),
                part,
                _failures[part],
            )


def failures() -> list[str]:
    """One sentence per part that failed in this process, with the reason and the fix."""
    return [
        f"verl-gsd does not fit verl {_verl_version()}: {part} failed ({reason}). Run verl-gsd contract to list "
        "what has changed, and install a version of verl that verl-gsd supports."
        for part, reason in _failures.items()
    ]


def reject_if_failed(*_: Any, **__: Any) -> None:
    """Reject a run that uses this package if a part of it failed in this process.

    It accepts any arguments, because it also stands in verl's registries for an estimator or a trainer that could not
    be imported.

    Raises:
        ConfigError: lists what failed.
    """
    if problems := failures():
        raise ConfigError("\n".join(problems))


def _verl_version() -> str:
    """Of the verl in this process, which may be a folder on the path and not the installed one."""
    return getattr(sys.modules.get("verl"), "__version__", "(unknown version)")
