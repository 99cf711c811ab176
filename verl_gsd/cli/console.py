"""What all commands share: where they print, and how they end on a mistake of the user's."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print ``message`` to standard error and exit; 2 is a mistake to mend, 1 a run that failed."""
    err.print(f"[bold red]error[/] {_plain(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _plain(message: str) -> str:
    from rich.markup import escape

    return escape(message)
