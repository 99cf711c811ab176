"""Settings that the extensions of a run do not work with, according to their declarations.

``run/checks/conflicts.py`` reports them for a config, the report and the audit advise no setting that leads to one
(``is_accepted``), and ``scripts/compatibility.py`` writes them into docs/switching.md.
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

SECTIONS = "algorithm.gsd."
MODE = "trainer.v1.trainer_mode"


@dataclass(frozen=True)
class Condition:
    """``Conflict.setting`` or ``Conflict.when``, parsed. ``weighs`` is not a condition.

    Attributes:
        values: values that the key must have, or must not have if ``negated``. Empty: any value that is not null.
    """

    key: str
    values: tuple[Any, ...] = ()
    negated: bool = False

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse ``key``, ``key=value|value`` or ``key!=value|value``."""
        key, equals, values = text.partition("=")
        parsed = tuple(yaml.safe_load(value) for value in values.split("|")) if equals else ()
        return cls(key.removesuffix("!"), parsed, negated=key.endswith("!"))

    def holds(self, config: DictConfig) -> bool:
        """Whether the resolved ``config`` meets the condition."""
        value = OmegaConf.select(config, self.key)
        is_listed = any(_is_equal(value, listed) for listed in self.values)
        if self.negated or not self.values:
            return value is not None and not is_listed
        return is_listed


def _is_equal(value: Any, other: Any) -> bool:
    """Whether two values are equal. Unlike in Python, true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


@dataclass(frozen=True)
class ConflictInConfig:
    """A conflict of an extension that takes part, for a config that meets ``Conflict.setting``.

    Attributes:
        key: the key of the config that conflicts.
        applies: whether the config also meets ``Conflict.when``.
    """

    declaration: Declaration
    conflict: Conflict
    key: str
    applies: bool


def all_conflicts(declaration: Declaration, mode: str = "sync") -> tuple[Conflict, ...]:
    """The conflicts that an extension declares, and those that follow from other fields of its declaration.

    Args:
        mode: one of verl's own trainer modes. A fix for it suggests our mode that extends it.
    """
    return (*declaration.conflicts, *_implied(declaration, mode))


def _implied(declaration: Declaration, mode: str) -> Iterator[Conflict]:
    container = extension.declared(_top_name(declaration)) if "." in declaration.name else None
    # An extension reports the conflicts that its parts have as well.
    if declaration.weighs and not (container and container.weighs):
        yield Conflict(
            "algorithm.adv_estimator!=gsd",
            "it changes or uses the advantages of the estimator gsd",
            "Set algorithm.adv_estimator=gsd.",
        )
    if declaration.needs_groups and not (container and container.needs_groups):
        yield Conflict(
            f"{MODE}!={'|'.join(OUR_MODES.values())}",
            f"it needs whole groups, which only {', '.join(OUR_MODES.values())} provide",
            f"Set {MODE}={OUR_MODES.get(mode, OUR_MODES['sync'])}.",
        )


def conflicts_in(config: DictConfig) -> Iterator[ConflictInConfig]:
    """The conflicts of the extensions that take part, at most one per extension and key.

    Conflicts that do not apply because of ``Conflict.when`` come last.
    """
    gsd, mode = OmegaConf.select(config, "algorithm.gsd") or {}, str(OmegaConf.select(config, MODE))
    # gsd_section.py reports sections that are not mappings.
    active = [declaration for declaration in extension.active(gsd) if isinstance(declaration.section(gsd), Mapping)]
    conflicts = [
        ConflictInConfig(declaration, conflict, key, not conflict.when or Condition.parse(conflict.when).holds(config))
        for declaration in active
        for conflict in all_conflicts(declaration, mode)
        for key in _keys_of(conflict, declaration, active, config)
    ]
    reported_pairs: set[frozenset[str]] = set()
    for in_config in sorted(conflicts, key=lambda in_config: not in_config.applies):
        pair = frozenset((in_config.declaration.name, in_config.key.removeprefix(SECTIONS)))
        if pair not in reported_pairs:
            yield in_config
        reported_pairs.add(pair)


def lacks_accuracy(config: DictConfig) -> bool:
    """Whether rewards come only from a reward model, which returns a score and no ``acc``."""
    has_function = OmegaConf.select(config, "reward.custom_reward_function.path") is not None
    return OmegaConf.select(config, "reward.reward_model.enable") is True and not has_function


def with_changes(config: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    """A copy of ``config`` with other values. The values may be interpolations.

    Args:
        changes: dotted key -> value.
    """
    changed = config.copy()
    for key, value in changes.items():
        OmegaConf.update(changed, key, value, merge=False, force_add=True)
    return changed


def is_accepted(config: DictConfig, changes: Mapping[str, Any], *, is_rated: bool = True) -> bool:
    """Whether ``changes`` bring the config no conflict and no contradiction that it does not have already.

    This looks only at what extensions declare and at what needs ``acc``, so that a config may be incomplete. The checks
    before a run look at more.

    Args:
        changes: dotted key -> value.
        is_rated: False if it is known that the verifier does not return an ``acc`` in [0, 1] for every response.
    """
    return _objections(with_changes(config, changes), is_rated) <= _objections(config, is_rated)


def _objections(config: DictConfig, is_rated: bool) -> set[tuple[str, str]]:
    """(extension, setting that it does not work with) of a config. The name is empty for verl's dynamic sampling."""
    active = extension.active(OmegaConf.select(config, "algorithm.gsd") or {})
    found = {(of.declaration.name, of.key) for of in conflicts_in(config) if of.applies}
    found |= {
        (declaration.name, contradiction.setting)
        for declaration in active
        for contradiction in declaration.contradictions
        if Condition.parse(contradiction.setting).holds(config)
    }
    if lacks_accuracy(config) or not is_rated:
        found |= {(declaration.name, "acc") for declaration in active if declaration.reads_accuracy}
    if lacks_accuracy(config):
        filters = OmegaConf.select(config, "algorithm.filter_groups.enable") is True
        if filters and OmegaConf.select(config, "algorithm.filter_groups.metric") != "reward":
            found.add(("", "acc"))
    return found


def _keys_of(
    conflict: Conflict, declaration: Declaration, active: Sequence[Declaration], config: DictConfig
) -> list[str]:
    """The keys of ``config`` that meet ``Conflict.setting``."""
    if conflict.setting == WEIGHS:
        return [f"{SECTIONS}{other.name}" for other in others_that_weigh(declaration, active)]
    condition = Condition.parse(conflict.setting)
    return [condition.key] if condition.holds(config) else []


def others_that_weigh(declaration: Declaration, among: Sequence[Declaration]) -> list[Declaration]:
    """Other extensions that weigh advantages. A part is left out if the extension that contains it is listed."""
    others = [other for other in among if other.weighs and _top_name(other) != _top_name(declaration)]
    names = {other.name for other in others}
    return [other for other in others if other.name == _top_name(other) or _top_name(other) not in names]


def _top_name(declaration: Declaration) -> str:
    """The name of the extension, or of the extension that contains it as a part."""
    return declaration.name.partition(".")[0]
