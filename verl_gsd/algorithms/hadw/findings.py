"""The finding of HA-DW: an anchor that no longer follows the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.algorithms.hadw.report import OBSERVED
from verl_gsd.report.findings.finding import Finder, Finding, assigned, numeric_value
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

_PRESET = "algorithm.gsd.hadw.preset"
#: The anchor is frozen if its values over FROZEN_STEPS steps span at most FROZEN_SPAN, and their mean differs from the
#: mean accuracy by more than FROZEN_DISTANCE.
FROZEN_STEPS, FROZEN_SPAN, FROZEN_DISTANCE = 10, 1e-3, 0.05


def frozen_anchor(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """HA-DW's anchor no longer changes and is far from the accuracy that it observes (``report.OBSERVED``).

    An anchor that the user fixed is no finding.
    """
    if config.get(_PRESET) == "fixed" or numeric_value(config, _PRESET) is not None:
        return
    anchor, accuracy = column(table, "anchor"), column(table, OBSERVED)
    has_both = ~np.isnan(anchor) & ~np.isnan(accuracy)
    anchor, accuracy = (values[has_both][-FROZEN_STEPS:] for values in (anchor, accuracy))
    if len(anchor) < FROZEN_STEPS or np.ptp(anchor) > FROZEN_SPAN:
        return
    if abs(accuracy.mean() - anchor.mean()) > FROZEN_DISTANCE:
        yield Finding(
            "HA-DW's anchor is frozen",
            f"It has been at {anchor[-1]:.3f} for at least {len(anchor)} steps, but the accuracy is "
            f"{accuracy.mean():.3f}. HA-DW still judges how hard a prompt is by the accuracy of an earlier policy.",
            (
                *assigned(config, _PRESET, "hard", "the mean of the last ten steps"),
                *assigned(config, _PRESET, "soft", "its rate cannot reach 0"),
            ),
        )


FINDERS: tuple[Finder, ...] = (frozen_anchor,)
