"""The error for configurations that cannot run, and the trainer modes of verl and of this package."""

from __future__ import annotations

from collections.abc import Sequence

#: verl's trainer modes -> our modes, which extend them.
OUR_MODES = {
    "sync": "gsd_sync",
    "colocate_async": "gsd_colocate_async",
    "separate_async": "gsd_separate_async",
}


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value and what to set instead."""


class SettingsError(ValueError):
    """A config section is wrong.

    Attributes:
        problems: one sentence per problem. Each begins with the key, relative to the section.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problem.removeprefix(": ") for problem in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        """Ray pickles errors of workers."""
        return type(self), (self.problems,)
