"""Config sections as pydantic models: each setting, its type, range and default are defined in one place.

A model rejects unknown keys and wrong values with one sentence per problem. The sentence names the key and the value,
and says what to set instead. Importing this module needs neither torch nor verl.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from verl_gsd.errors import SettingsError as SettingsError
from verl_gsd.sections import shown as shown


class SectionSettings(BaseModel):
    """Base class of the model of a config section ``algorithm.gsd.<name>``.

    Values are not converted (``"3"`` is not 3, and ``true`` is not 1), but an integer is accepted as a float. Numbers
    are finite. A validator raises a ValueError that says what is wrong and what to set. An error does not repeat the
    value of a field with ``repr=False``, because it may be a secret.

    Attributes:
        parts: keys of the section that are sections of other extensions. ``of`` ignores them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    parts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, section: Any) -> Self:
        """The settings of a config section, a mapping; settings are returned as they are.

        Raises:
            SettingsError: the section is not a mapping, has an unknown key or lacks one, or a value is wrong.
        """
        if isinstance(section, cls):
            return section
        if not isinstance(section, Mapping):
            raise SettingsError([f"{shown(section)} is not a section. Set it to a section with keys, or to null."])
        try:
            return cls.model_validate({key: _plain(value) for key, value in section.items() if key not in cls.parts})
        except ValidationError as error:
            raise SettingsError([cls._sentence(problem) for problem in error.errors()]) from error

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of a field."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    @classmethod
    def _sentence(cls, problem: Any) -> str:
        """What pydantic reports, as a sentence: ``key=value: what is wrong. What to set.``"""
        key, kind = str(problem["loc"][0]) if problem["loc"] else "", problem["type"]
        field = cls.model_fields.get(key)
        if field is None and key:
            known = [*cls.model_fields, *cls.parts]
            return f"{key}: no such key." + (did_you_mean(key, known) or f" Keys are {', '.join(known)}.")
        if kind == "missing":
            return f"{key} is missing. Set it."
        named = "The section" if field is None else f"{key}={shown(problem['input'])}" if field.repr else key
        if kind == "value_error":
            text = str(problem["ctx"]["error"])
            return f"{named}: {text}" if text.endswith((".", "?")) else f"{named}: {text}."
        values = None if field is None else _values_of(field)
        if values is None:
            return f"{named}: {problem['msg']}."
        value = problem["input"]
        wrong_type = "it cannot be null" if value is None else f"wrong type ({type(value).__name__})"
        suggestion = did_you_mean(value, _choices(field))
        return f"{named}: {_WHAT_IS_WRONG.get(kind, wrong_type)}. Set it to {values}.{suggestion}"


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """A sentence, with a space before it, that names the entry of ``known`` that ``value`` resembles; empty if none."""
    close = difflib.get_close_matches(value, list(known), n=1) if isinstance(value, str) else []
    return f" Did you mean {close[0]}?" if close else ""


#: By pydantic's type of error. Those of wrong types are left out.
_WHAT_IS_WRONG = {
    "finite_number": "not finite",
    "greater_than": "out of range",
    "greater_than_equal": "out of range",
    "less_than": "out of range",
    "less_than_equal": "out of range",
    "string_too_short": "too short",
    "literal_error": "no such value",
}
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
#: By the name of a constraint's attribute.
_BOUNDS = {
    "gt": "above {:g}",
    "ge": "of {:g} or more",
    "lt": "below {:g}",
    "le": "up to {:g}",
    "min_length": "with {} or more characters",
}


def _alternatives(annotation: Any, metadata: Sequence[Any]) -> Iterable[tuple[Any, list[Any]]]:
    """The types that an annotation allows, each with its constraints."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part, metadata)
    elif get_origin(annotation) is Annotated:
        kind, *further = get_args(annotation)
        for constraint in further:
            metadata = [*metadata, *(constraint.metadata if isinstance(constraint, FieldInfo) else [constraint])]
        yield kind, list(metadata)
    else:
        yield annotation, list(metadata)


def _values_of(field: FieldInfo) -> str | None:
    """The values that a field may have, in words; None for types that this module does not describe."""
    words = []
    for kind, metadata in _alternatives(field.annotation, field.metadata):
        if kind is NoneType:
            words.append("to null")
        elif get_origin(kind) is Literal:
            words.append(f"one of {', '.join(map(shown, get_args(kind)))}")
        elif kind in _KINDS:
            bounds = [
                text.format(getattr(constraint, name))
                for constraint in metadata
                for name, text in _BOUNDS.items()
                if getattr(constraint, name, None) is not None
            ]
            words.append(" ".join([_KINDS[kind], " and ".join(bounds)]).strip())
        else:
            return None
    return ", or ".join(words)


def _choices(field: FieldInfo | None) -> list[str]:
    """The names among which a field's value is chosen."""
    kinds = _alternatives(field.annotation, ()) if field is not None else ()
    return [str(choice) for kind, _ in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def _plain(value: Any) -> Any:
    """A config value as dicts and lists of Python's own."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value
