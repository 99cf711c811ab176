"""``verl-gsd judge calibrate FILE``: how well a judge agrees with the verifier, and what DaGRPO's mask then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from verl_gsd.console import fail
from verl_gsd.judge.score_files import SCORE_COLUMN, ResponseFile


def calibrate(
    file: ResponseFile,
    score_column: Annotated[
        str, typer.Option(help="Column of the judge's scores; null if a judgement failed.")
    ] = SCORE_COLUMN,
    correct_column: Annotated[
        str, typer.Option(help="Column of the verifier's verdicts: true or false, 1 or 0.")
    ] = "correct",
    group_column: Annotated[
        str, typer.Option(help="Column of groups: rows with equal values answer the same problem.")
    ] = "problem",
    delta: Annotated[
        list[float] | None, typer.Option(help="A delta of the mask; repeat the option for more. Default: -inf 0 1 3 5.")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also save all figures as JSON to this file.")
    ] = None,
) -> None:
    """Compare a judge with the verifier: its agreement, its use of the scale, and the effect on DaGRPO's mask.

    The mask is also computed for synthetic judges of known quality.

    Examples:
        verl-gsd judge calibrate scored.jsonl
        verl-gsd judge calibrate scored.jsonl --delta 1 --delta 3 --json agreement.json
    """
    import numpy as np

    from verl_gsd.algorithms.dagrpo.calibration_tables import as_json, print_calibration
    from verl_gsd.algorithms.dagrpo.judge_calibration import calibrate as measure
    from verl_gsd.algorithms.dagrpo.mask_quality import DELTAS
    from verl_gsd.judge.cells import as_label, as_score, as_verdict
    from verl_gsd.row_table import read_row_table
    from verl_gsd.writing import atomic_write

    try:
        table = read_row_table(file)
        if not len(table):
            fail(f"{file}: the file has no rows. Use a file that verl-gsd judge score has produced.")
        scores = np.array(table.column(score_column, as_score))
        correct = np.array(table.column(correct_column, as_verdict))
        groups = table.column(group_column, as_label)
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
