"""Options of ``plan`` and ``lab`` that say which columns of a file hold the solve rates."""

from __future__ import annotations

from typing import Annotated

import typer

Column = Annotated[
    str | None,
    typer.Option(help="Column with the solve rates. For verl's rollout dumps: the field with the verdict."),
]
Samples = Annotated[int | None, typer.Option(help="Number of responses behind each solve rate or count.")]
CorrectColumn = Annotated[
    str | None, typer.Option(help="Instead of --column: column with the number of correct responses.")
]
TotalColumn = Annotated[str | None, typer.Option(help="Instead of --samples: column with the number of responses.")]
