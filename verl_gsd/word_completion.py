"""Shell completion of the words ``GROUP=NAME`` of a command line, such as ``algo=grpo``.

It imports what ``config_choices`` imports and nothing else: a shell waits for it at every key press.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from verl_gsd.config_choices import GROUPS, about, choices
from verl_gsd.errors import ConfigError

#: Characters of a choice's description: a shell shows it on the choice's line.
_HELP_WIDTH = 70


def complete_words(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """The completions of a word, as (completion, help), for ``typer.Argument(autocompletion=...)``.

    Args:
        ctx: click's context of the command, whose argument is called ``words``.
    """
    try:
        return completions(ctx.params.get("words") or (), incomplete)
    except ConfigError:  # the files of another package: completion cannot say so, and every other command does
        return []


def completions(words: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    """The completions of ``incomplete`` after ``words``.

    bash splits words at ``=`` and replaces only what follows it. ``algo=g`` is then the words ``algo`` and ``=``, and
    the incomplete ``g``. Right after the ``=``, click takes the ``=`` for an empty incomplete word.

    Raises:
        ConfigError: the files of another package cannot be read.
    """
    before = list(words)
    if before and before[-1] == "=":
        before.pop()
    if before and before[-1] in GROUPS:
        return _names(before[-1], incomplete)
    group, equals, name = incomplete.partition("=")
    if equals:
        return [(f"{group}={value}", text) for value, text in _names(group, name)]
    groups = [one for one in GROUPS if one.startswith(incomplete)]
    if len(groups) == 1:  # the names as well, because a shell adds a space after a single completion
        return [(f"{groups[0]}={value}", text) for value, text in _names(groups[0], "")]
    return [(f"{one}=", "") for one in groups]


def _names(group: str, beginning: str) -> list[tuple[str, str]]:
    """(name, what it is) of the choices of a group that begin so; none for another word than a group."""
    if group not in GROUPS:
        return []
    names = [name for name in choices(group) if name.startswith(beginning)]
    return [(name, textwrap.shorten(about(group, name), _HELP_WIDTH, placeholder=" ...")) for name in names]
