"""An anchor that no longer follows the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.findings.finding import Finder, Finding, numeric_value
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

_PRESET = "algorithm.gsd.hadw.preset"
#: The anchor is frozen if it moved no further than the span in so many steps, and is so far from the accuracy.
FROZEN_STEPS, FROZEN_SPAN, FROZEN_DISTANCE = 10, 1e-3, 0.05


def frozen(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """HA-DW's anchor stands still, far from the accuracy that it is to follow; not where it is fixed by choice."""
    if config.get(_PRESET) == "fixed" or numeric_value(config, _PRESET) is not None:
        return
    known = ~np.isnan(column(table, "anchor"))
    anchor, accuracy = (column(table, name)[known][-FROZEN_STEPS:] for name in ("anchor", "accuracy"))
    if len(anchor) < FROZEN_STEPS or np.ptp(anchor) > FROZEN_SPAN:
        return
    if abs(accuracy.mean() - anchor.mean()) > FROZEN_DISTANCE:
        yield Finding(
            "HA-DW's anchor is frozen",
            f"It stands at {anchor[-1]:.3f} for {len(anchor)} steps or more, where accuracy is {accuracy.mean():.3f}: "
            "what counts as a hard prompt is that of an earlier policy.",
            (f"{_PRESET}=hard  # the mean of the last ten steps; or soft, whose rate cannot reach 0",),
        )


FINDERS: tuple[Finder, ...] = (frozen,)
