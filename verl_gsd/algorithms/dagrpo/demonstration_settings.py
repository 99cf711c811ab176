"""The config section ``algorithm.gsd.dagrpo.demonstrations``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from verl_gsd.settings import SectionSettings


class DemonstrationSettings(SectionSettings):
    """Where demonstrations come from and which groups have them.

    Attributes:
        source: ``expert``, a column of the data; ``self``, the policy's own earlier successes on the same prompt;
            ``expert_or_self``, these where no expert's is accepted.
        column: of the data, a text or a list of texts per prompt; null where it has none.
        mode: ``all_fail``: groups in which every rollout failed; ``always``: every group that has one.
        per_group: demonstrations in a group at most.
    """

    source: Literal["expert", "self", "expert_or_self"] = "expert"
    column: str = Field("demonstration", min_length=1)
    mode: Literal["all_fail", "always"] = "all_fail"
    per_group: int = Field(1, ge=1)
