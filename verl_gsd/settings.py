"""Config sections as pydantic models: each setting, its type, range and default stand in one place.

A model rejects unknown keys and wrong values with one sentence per problem, which names the key, the value and what to
set instead. It needs neither torch nor verl, so that a command line is checked at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self


class SettingsError(ValueError):
    """A config section is wrong.

    Attributes:
        problems: one sentence per problem. Each begins with the key, relative to the section.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class SectionSettings(BaseModel):
    """Base class of the model of a config section ``algorithm.gsd.<name>``.

    Values are not converted (``"3"`` is not 3, and ``true`` is not 1), but an integer is accepted as a float.
    A validator raises a ValueError that says what to set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    @classmethod
    def of(cls, section: Any) -> Self:
        """The settings of a config section, a mapping; settings are returned as they are.

        Raises:
            SettingsError: the section is not a mapping, has an unknown key or lacks one, or a value is wrong.
        """
        if isinstance(section, cls):
            return section
        if not isinstance(section, Mapping):
            raise SettingsError([f"{section} is not a section. Set it to a section with keys, or to null."])
        try:
            return cls.model_validate(_plain(section))
        except ValidationError as error:
            raise SettingsError([cls._sentence(problem) for problem in error.errors()]) from error

    @classmethod
    def _sentence(cls, problem: Any) -> str:
        """What pydantic reports, as a sentence: ``key=value: what is wrong. What to set.``"""
        path = [str(part) for part in problem["loc"] if not str(part).startswith(("function-", "tuple", "list"))]
        key, kind, context = ".".join(path), problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            known = list(cls.model_fields)
            meant = difflib.get_close_matches(key, known, n=1)
            return f"{key}: no such key. " + (f"Did you mean {meant[0]}?" if meant else f"Keys are {', '.join(known)}.")
        if kind == "missing":
            return f"{key} is missing. Set it."
        named = f"{key}={_shown(problem['input'])}" if key else "The section"
        if kind == "value_error":
            return f"{named}: {str(context['error']).rstrip('.')}."
        return f"{named}: {_REMEDIES.get(kind, problem['msg'] + '.').format(**context)}"


#: What to set, by pydantic's type of error.
_REMEDIES = {
    "bool_type": "Set it to true or false.",
    "int_type": "Set it to a whole number.",
    "int_from_float": "Set it to a whole number.",
    "float_type": "Set it to a number.",
    "string_type": "Set it to a string.",
    "finite_number": "Set it to a finite number.",
    "greater_than": "Set it to a number above {gt}.",
    "greater_than_equal": "Set it to {ge} or more.",
    "less_than": "Set it to a number below {lt}.",
    "less_than_equal": "Set it to {le} or less.",
    "literal_error": "Set it to one of {expected}.",
}


def _plain(value: Any) -> Any:
    """A config value as dicts and lists of Python's own."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
