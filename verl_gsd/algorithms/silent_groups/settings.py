"""The config section ``algorithm.gsd.silent_groups``."""

from __future__ import annotations

from pydantic import field_validator

from verl_gsd.settings import SectionSettings


class SilentGroupSettings(SectionSettings):
    """Settings of silent groups. A run without the section has verl's denominator.

    Attributes:
        in_denominator: whether the policy loss is also divided by the responses or tokens of silent groups. It is false
            here, because verl's denominator needs no extension.
    """

    in_denominator: bool = False

    @field_validator("in_denominator")
    @classmethod
    def _is_false(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "this is verl's denominator, which needs no section. Set silent_groups=counted, or set "
                "algorithm.gsd.silent_groups to null"
            )
        return value
