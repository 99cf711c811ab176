"""``verl-gsd judge calibrate FILE``: how well a judge agrees with the verifier, and what DaGRPO's mask does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from verl_gsd.console import fail
from verl_gsd.judge.score_files import SCORE_COLUMN, ResponseFile


def calibrate(
    file: ResponseFile,
    score_column: Annotated[str, typer.Option(help="A judge's scores, null where it failed.")] = SCORE_COLUMN,
    correct_column: Annotated[str, typer.Option(help="The verifier's verdicts: true or false, 1 or 0.")] = "correct",
    group_column: Annotated[str, typer.Option(help="Rows with equal values answer one problem.")] = "problem",
    delta: Annotated[list[float] | None, typer.Option(help="Deltas of the mask. Default: -inf 0 1 3 5.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write all figures to this file.")] = None,
) -> None:
    """Compare a judge with the verifier: agreement, use of the scale, DaGRPO's mask, and judges of known quality."""
    import numpy as np

    from verl_gsd.algorithms.dagrpo.calibration_tables import as_json, print_calibration
    from verl_gsd.algorithms.dagrpo.judge_calibration import calibrate as measure
    from verl_gsd.algorithms.dagrpo.mask_quality import DELTAS
    from verl_gsd.judge.cells import as_label, as_score, as_verdict
    from verl_gsd.row_table import read_row_table
    from verl_gsd.writing import atomic_write

    try:
        sheet = read_row_table(file)
        if not len(sheet):
            fail(f"{file}: no rows. Use a file that verl-gsd judge score has written.")
        scores = np.array(sheet.column(score_column, as_score))
        correct = np.array(sheet.column(correct_column, as_verdict))
        groups = sheet.column(group_column, as_label)
        calibration = measure(scores, correct, groups, sorted(set(delta or DELTAS)))
    except ValueError as error:
        fail(str(error))
    print_calibration(calibration)
    if json_:
        try:
            with atomic_write(json_) as building:
                building.write_text(json.dumps(as_json(calibration), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"{json_}: {error}")
