"""Config sections as pydantic models, which define each setting with its type, range and default.

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
from verl_gsd.scalars import as_yaml


class SectionSettings(BaseModel):
    """Base class of the models of config sections ``algorithm.gsd.<name>``.

    Values are not converted: ``"3"`` is not 3, and ``true`` is not 1. The exception is an integer, which is accepted as
    a float. Numbers must be finite. A validator raises a ValueError that says what is wrong and what to set. If a field
    has ``repr=False``, errors do not repeat its value, because it may be a secret.

    Attributes:
        parts: keys of this section that are the sections of other extensions. ``of`` ignores them.
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
        """Validate a config section and return its settings. Settings of this class are returned unchanged.

        Raises:
            SettingsError: the section is not a mapping, a key is unknown or missing, or a value is wrong.
        """
        if isinstance(section, cls):
            return section
        if not isinstance(section, Mapping):
            raise SettingsError([f"{as_yaml(section)} is not a section. Set it to a section with keys, or to null."])
        try:
            return cls.model_validate({key: _plain(value) for key, value in section.items() if key not in cls.parts})
        except ValidationError as error:
            raise SettingsError([cls._sentence(problem) for problem in error.errors()]) from error

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of the field ``name``."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    @classmethod
    def _sentence(cls, problem: Any) -> str:
        """Turn a problem from pydantic into a message: ``key=value: what is wrong. What to set.``"""
        key, kind = str(problem["loc"][0]) if problem["loc"] else "", problem["type"]
        field = cls.model_fields.get(key)
        if field is None and key:
            keys = [*cls.model_fields, *cls.parts]
            return f"{key}: no such key." + (did_you_mean(key, keys) or f" Keys are {', '.join(keys)}.")
        if field is not None and _is_model(field) and len(problem["loc"]) > 1:
            # A field of a model within this one. It may be secret, so the value is left out.
            return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}."
        if kind == "missing":
            return f"{key} is missing. Set it."
        # A problem of the section as a whole has no key and begins with the colon.
        subject = "" if field is None else f"{key}={as_yaml(problem['input'])}" if field.repr else key
        if kind == "value_error":
            text = str(problem["ctx"]["error"])
            return f"{subject}: {text}" if text.endswith((".", "?")) else f"{subject}: {text}."
        allowed = None if field is None else allowed_values(field)
        if allowed is None:
            return f"{subject}: {problem['msg']}."
        value = problem["input"]
        wrong_type = "it cannot be null" if value is None else f"wrong type ({type(value).__name__})"
        suggestion = did_you_mean(value, _choices(field))
        return f"{subject}: {_WHAT_IS_WRONG.get(kind, wrong_type)}. Set it to {allowed}.{suggestion}"


def _is_model(field: FieldInfo) -> bool:
    """Whether the field's value can be a pydantic model."""
    kinds = (kind for kind, _ in _alternatives(field.annotation, ()))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """``" Did you mean X?"`` with the X of ``choices`` that ``value`` resembles; an empty string if there is none."""
    close = difflib.get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f" Did you mean {close[0]}?" if close else ""


#: pydantic's type of error -> words. Errors about wrong types are not listed.
_WHAT_IS_WRONG = {
    "finite_number": "not finite",
    "greater_than": "out of range",
    "greater_than_equal": "out of range",
    "less_than": "out of range",
    "less_than_equal": "out of range",
    "string_too_short": "too short",
    "literal_error": "no such value",
}
#: Python type -> words.
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
#: Attribute of a constraint -> words.
_BOUNDS = {
    "gt": "above {:g}",
    "ge": "of {:g} or more",
    "lt": "below {:g}",
    "le": "up to {:g}",
    "min_length": "with {} or more characters",
}


def _alternatives(annotation: Any, metadata: Sequence[Any]) -> Iterable[tuple[Any, list[Any]]]:
    """(type, its constraints) for each type that an annotation allows."""
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


def allowed_values(field: FieldInfo) -> str | None:
    """The values that a field may have, in words; None if this module cannot describe its type."""
    words = []
    for kind, metadata in _alternatives(field.annotation, field.metadata):
        if kind is NoneType:
            words.append("to null")
        elif get_origin(kind) is Literal:
            words.append(f"one of {', '.join(map(as_yaml, get_args(kind)))}")
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
    """The values of a field's ``Literal`` types; empty if it has none."""
    kinds = _alternatives(field.annotation, ()) if field is not None else ()
    return [str(choice) for kind, _ in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def _plain(value: Any) -> Any:
    """A config value with Python's own dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value
