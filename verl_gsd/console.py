"""The consoles that all commands print to, and the function that ends a command with an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print ``message`` to standard error and exit with ``code``.

    Args:
        code: 2 if the user can correct the mistake, 1 if a run failed.
    """
    err.print(f"[bold red]error[/] {_escape_markup(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _escape_markup(message: str) -> str:
    from rich.markup import escape

    return escape(message)


@contextmanager
def without_messages(logger: str) -> Iterator[None]:
    """Hide warnings of a library's logger, for example torch's about process groups when a checkpoint is only read."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
