"""Consoles of all commands, and how a command ends with an error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print ``message`` to standard error and exit. Use code 2 for a wrong command line, 1 for a run that failed."""
    err.print(f"[bold red]error[/] {_plain(message)}", soft_wrap=True)
    raise typer.Exit(code)


def _plain(message: str) -> str:
    from rich.markup import escape

    return escape(message)
