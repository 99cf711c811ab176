"""The config section ``algorithm.gsd.dagrpo.demonstrations``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verl_gsd.sections import is_whole, settings_of

SOURCES = ("expert", "self", "expert_or_self")
MODES = ("all_fail", "always")


@dataclass(frozen=True)
class Settings:
    """Where demonstrations come from and which groups have them.

    Attributes:
        source: ``expert``, a column of the data; ``self``, the policy's own earlier successes on the same prompt;
            ``expert_or_self``, these where no expert's is accepted.
        column: of the data, a text or a list of texts a prompt; null where it has none.
        mode: ``all_fail``: groups in which every rollout failed; ``always``: every group that has one.
        per_group: demonstrations in a group at most.

    Raises:
        ValueError: a value is out of range.
    """

    source: Literal["expert", "self", "expert_or_self"] = "expert"
    column: str = "demonstration"
    mode: Literal["all_fail", "always"] = "all_fail"
    per_group: int = 1

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source={self.source}: write one of {', '.join(SOURCES)}")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode}: write one of {', '.join(MODES)}")
        if not isinstance(self.column, str) or not self.column:
            raise ValueError(f"column={self.column}: write the name of a column of data.train_files")
        number = self.per_group
        if not is_whole(number, 1):
            raise ValueError(f"per_group={number}: write a number of demonstrations, 1 or more")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Settings:
        """From the config section; a ValueError for a key nobody reads."""
        return settings_of(cls, section)
