"""What the commands for files of judged responses share: the argument FILE, and the column with scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCORE_COLUMN = "judge_score"

ResponseFile = Annotated[Path, typer.Argument(metavar="FILE", help="Rows of responses: .parquet, .jsonl or .csv.")]
