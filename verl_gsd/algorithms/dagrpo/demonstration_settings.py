"""The config section ``algorithm.gsd.dagrpo.demonstrations``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from verl_gsd.settings import SectionSettings


class DemonstrationSettings(SectionSettings):
    """The source of demonstrations, and the groups that get them.

    Attributes:
        source: ``expert``: a column of the data. ``self``: the policy's own earlier successes on the same prompt.
            ``expert_or_self``: the latter if no text of the expert is accepted.
        column: the column of the data that holds a text or a list of texts per prompt; null for prompts without one.
        mode: ``all_fail``: groups in which every rollout failed. ``always``: every group for which there is one.
        per_group: maximum number of demonstrations per group.
    """

    source: Literal["expert", "self", "expert_or_self"] = "expert"
    column: str = Field("demonstration", min_length=1)
    mode: Literal["all_fail", "always"] = "all_fail"
    per_group: int = Field(1, ge=1)
