"""The consoles that all commands print to, and the function that ends a command with an error."""

from __future__ import annotations

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
