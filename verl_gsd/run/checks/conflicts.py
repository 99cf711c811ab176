"""Settings that the extensions of a run do not work with, as their declarations say.

``check_conflicts`` reads them for a config, and ``scripts/compatibility.py`` for the table in docs/switching.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.declaration import WEIGHS, Conflict, Declaration
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.compose import Line

_SECTIONS = "algorithm.gsd."
MODE = "trainer.v1.trainer_mode"


@dataclass(frozen=True)
class Condition:
    """``Conflict.setting`` or ``Conflict.when``, apart from ``weighs``.

    Attributes:
        values: that the key must have, or must not have where ``negated``; empty where any will do.
    """

    key: str
    values: tuple[Any, ...] = ()
    negated: bool = False

    @classmethod
    def of(cls, text: str) -> Condition:
        """From ``key``, ``key=value|value`` or ``key!=value|value``."""
        key, equals, values = text.partition("=")
        parsed = tuple(yaml.safe_load(value) for value in values.split("|")) if equals else ()
        return cls(key.removesuffix("!"), parsed, negated=key.endswith("!"))

    def holds(self, config: DictConfig) -> bool:
        """Whether the resolved ``config`` is as the condition says."""
        value = OmegaConf.select(config, self.key)
        has_one_of_them = any(_is_same(value, other) for other in self.values)
        if self.negated or not self.values:
            return value is not None and not has_one_of_them
        return has_one_of_them


def _is_same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


@dataclass(frozen=True)
class ConflictInConfig:
    """A conflict of an extension that takes part, and the key by which the config has it.

    Attributes:
        applies: whether ``Conflict.when`` holds, too.
    """

    declaration: Declaration
    conflict: Conflict
    key: str
    applies: bool


def all_conflicts(declaration: Declaration, mode: str = "sync") -> tuple[Conflict, ...]:
    """The conflicts that an extension declares, and those that follow from its other fields.

    Args:
        mode: a trainer mode of verl's own, in whose place one of ours is to be set.
    """
    return (*declaration.conflicts, *_implied(declaration, mode))


def _implied(declaration: Declaration, mode: str) -> Iterator[Conflict]:
    if "." in declaration.name:
        return  # the extension that it is a part of has the same needs, and says so
    if declaration.weighs:
        yield Conflict(
            "algorithm.adv_estimator!=gsd",
            "it changes or uses the advantages of the estimator gsd",
            "Set algorithm.adv_estimator=gsd.",
        )
    if declaration.needs_groups:
        yield Conflict(
            f"{MODE}!={'|'.join(OUR_MODES.values())}",
            f"it needs to see whole groups, which only {', '.join(OUR_MODES.values())} show",
            f"Set {MODE}={OUR_MODES.get(mode, OUR_MODES['sync'])}.",
        )


def conflicts_in(config: DictConfig) -> Iterator[ConflictInConfig]:
    """The conflicts of the extensions that take part, each pair of an extension and a key once.

    Those that do not apply, because of ``Conflict.when``, come last.
    """
    gsd, mode = OmegaConf.select(config, "algorithm.gsd") or {}, str(OmegaConf.select(config, MODE))
    # A section that is no mapping is reported by gsd_section.
    taking_part = [of for of in extension.active(gsd) if isinstance(of.section(gsd), Mapping)]
    conflicts = [
        ConflictInConfig(declaration, conflict, key, not conflict.when or Condition.of(conflict.when).holds(config))
        for declaration in taking_part
        for conflict in all_conflicts(declaration, mode)
        for key in _keys_of(conflict, declaration, taking_part, config)
    ]
    pairs: set[frozenset[str]] = set()
    for found in sorted(conflicts, key=lambda found: not found.applies):
        pair = frozenset((found.declaration.name, found.key.removeprefix(_SECTIONS)))
        if pair not in pairs:
            yield found
        pairs.add(pair)


def check_conflicts(config: DictConfig, line: Line) -> Iterator[str]:
    """Report every setting that an extension of this run does not work with."""
    for found in conflicts_in(config):
        if found.applies:
            name, reason, fix = found.declaration.name, found.conflict.reason, found.conflict.fix
            value = OmegaConf.select(config, found.key)
            shown = "" if OmegaConf.is_config(value) else f"={_shown(value)}"
            yield f"{found.key}{shown}: {_SECTIONS}{name} does not work with it: {reason}. {fix}"


def _keys_of(
    conflict: Conflict, declaration: Declaration, taking_part: Sequence[Declaration], config: DictConfig
) -> list[str]:
    """The keys by which ``config`` is as ``Conflict.setting`` says."""
    if conflict.setting == WEIGHS:
        return [f"{_SECTIONS}{other.name}" for other in others_that_weigh(declaration, taking_part)]
    condition = Condition.of(conflict.setting)
    return [condition.key] if condition.holds(config) else []


def others_that_weigh(declaration: Declaration, among: Sequence[Declaration]) -> list[Declaration]:
    """Extensions other than ``declaration`` that weigh. A part is left out where the whole is there."""
    found = [other for other in among if other.weighs and _whole(other) != _whole(declaration)]
    names = {other.name for other in found}
    return [other for other in found if other.name == _whole(other) or _whole(other) not in names]


def _whole(declaration: Declaration) -> str:
    """The name of the extension that it is, or is a part of."""
    return declaration.name.partition(".")[0]


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
