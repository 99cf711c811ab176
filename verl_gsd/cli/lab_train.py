"""``verl-gsd lab train``."""

from __future__ import annotations

from typing import Annotated

import typer


def train(words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")]) -> None:
    """Train a small policy in this process, by the words of verl-gsd train."""
    raise NotImplementedError
