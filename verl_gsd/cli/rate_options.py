"""How a command is told where solve rates stand in a file: options of ``plan`` and ``lab``."""

from __future__ import annotations

from typing import Annotated

import typer

Column = Annotated[str | None, typer.Option(help="Of the rates: their column; of dumps, the verdict.")]
Samples = Annotated[int | None, typer.Option(help="Of the rates: how many responses are behind each rate or count.")]
CorrectColumn = Annotated[str | None, typer.Option(help="In place of --column: a column that counts right responses.")]
TotalColumn = Annotated[str | None, typer.Option(help="In place of --samples: a column that counts responses.")]
