"""From rewards to advantages, in the order every algorithm here shares:

    centre -> divide by (sigma + eps)^alpha -> multiply by the weights

The dial in the middle is always there (alpha = 0 divides by 1). What stands at either end is a *stage*: a function
registered under a name, taking part where the config has a section of that name, ``algorithm.gsd.<name>``. So a new
algorithm is one file with one ``register_stage`` and one YAML with its section.

sigma is the standard deviation of the group's original rewards, unless the centring stage leaves rows out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch

from verl_gsd.algorithms import dial
from verl_gsd.algorithms.settings import DIAL_SETTINGS, dial_settings
from verl_gsd.groups import Group, GroupStats, Labels, Member, float_rows, group_stats, require_finite

Place = Literal["centre", "weight"]


@dataclass(frozen=True)
class Rows:
    """What a stage can know about a batch of N responses.

    Attributes:
        rewards: (N,) float.
        stats: the groups and their figures, in float64.
        columns: further knowledge, one entry a row, by name (verifier accuracy, judge scores); what is there depends on
            the trainer.
    """

    rewards: torch.Tensor
    stats: GroupStats
    columns: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str, stage: str) -> Any:
        """A column that ``stage`` cannot do without.

        Raises:
            ValueError: the trainer did not provide it.
        """
        if name not in self.columns:
            raise ValueError(f"algorithm.gsd.{stage} needs {name} of every row, which this trainer does not provide")
        return self.columns[name]


class StageMemory(Protocol):
    """What a stage knows of groups beyond the batch, fed by a trainer that sees them whole.

    Within a trainer step it does not change; ``commit`` ends the step.
    """

    def adopt(self, group: Group) -> Group:
        """``group`` as the run is to see and record it, once it has left the buffer."""

    def columns(self, rows: Sequence[Member | None], left: Sequence[Group]) -> Mapping[str, Any]:
        """Columns for ``Rows``, from what each row is (None: of no group) and the groups that left in this step."""

    def record(self, group: Group) -> Mapping[str, float | None]:
        """Further columns of a group's record, in the state before ``commit``."""

    def commit(self, left: Sequence[Group]) -> None:
        """Learn from every group that left in the step, whatever its fate."""

    def metrics(self) -> Mapping[str, float]:
        """Of the step committed last."""

    def depends_on(self) -> dict[str, Any]:
        """Settings that must be the same when the state is restored, as plain JSON."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


#: A centring stage returns (N,) centred rewards from (rows, its config section); beside them, where sigma is to be that
#: of fewer rows, those rows' groups.
Centre = Callable[[Rows, Mapping[str, Any]], torch.Tensor | tuple[torch.Tensor, GroupStats]]
#: A weighting stage returns (N,) factors from (rows, the advantages so far, its config section).
Weight = Callable[[Rows, torch.Tensor, Mapping[str, Any]], torch.Tensor]

_STAGES: dict[str, tuple[Place, Callable]] = {}
_MEMORIES: dict[str, Callable[[Mapping[str, Any]], StageMemory]] = {}


def register_stage(
    name: str, place: Place, *, memory: Callable[[Mapping[str, Any]], StageMemory] | None = None
) -> Callable[[Callable], Callable]:
    """Register a stage that takes part where the config has ``algorithm.gsd.<name>``.

    Args:
        name: of the stage and of its config section.
        place: ``centre`` replaces the subtraction of the group's mean (at most one such stage takes part); ``weight``
            multiplies the divided advantages (any number do, in the order of their names).
        memory: builds, from the config section, what the stage knows of groups beyond the batch; only a trainer that
            sees whole groups can feed it. A ValueError of its says what is wrong with the section.

    Raises:
        ValueError: no such place, or the name is a setting of the dial's or another function's.
    """
    if place not in get_args(Place):
        raise ValueError(f"place={place!r}: write one of {', '.join(get_args(Place))}")
    if name in DIAL_SETTINGS:
        raise ValueError(f"stage {name!r}: algorithm.gsd.{name} is a setting of the dial. Choose another name.")

    def register(function: Callable) -> Callable:
        if _STAGES.setdefault(name, (place, function)) != (place, function):
            raise ValueError(f"stage {name!r} is registered already, by {_STAGES[name][1].__module__}")
        if memory is not None:
            _MEMORIES[name] = memory
        return function

    return register


def advantages(
    rewards: torch.Tensor,
    index: Labels,
    gsd: Mapping[str, Any],
    *,
    mask: torch.Tensor | None = None,
    columns: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Run the chain that ``gsd``, the config section ``algorithm.gsd``, describes.

    Args:
        rewards, index, mask: as ``dial.dial_advantage``.
        gsd: ``alpha``, ``ddof``, ``eps`` and a section for every stage that takes part.
        columns: see ``Rows.columns``.

    Returns:
        (N,) in the rewards' dtype, float32 at least.

    Raises:
        ValueError: a setting of the dial is missing, two centring stages take part, or a stage refuses the rows.
    """
    settings = dial_settings(gsd)
    rewards = float_rows(rewards, "rewards")
    columns = {  # a trainer makes its columns on the CPU
        name: column.to(rewards.device) if isinstance(column, torch.Tensor) else column
        for name, column in (columns or {}).items()
    }
    rows = Rows(rewards, group_stats(rewards.double(), index, mask), columns)
    centred, stats = _centre(rows, gsd)
    result = dial.divide(centred, stats, **settings)
    for name, stage in stages(gsd, "weight").items():
        result = result * _one_a_row(stage(rows, result, gsd[name]), rows, name)
    return result


def _centre(rows: Rows, gsd: Mapping[str, Any]) -> tuple[torch.Tensor, GroupStats]:
    centres = stages(gsd, "centre")
    if len(centres) > 1:
        raise ValueError(f"algorithm.gsd has {' and '.join(centres)}: each replaces the group's mean. Leave one out.")
    for name, stage in centres.items():
        found = stage(rows, gsd[name])
        centred, stats = found if isinstance(found, tuple) else (found, rows.stats)
        return _one_a_row(centred, rows, name), stats
    return dial.centre(rows.rewards, rows.stats), rows.stats


def _one_a_row(values: torch.Tensor, rows: Rows, stage: str) -> torch.Tensor:
    """What a stage returned, in the rewards' dtype and 0 in rows of no group; a ValueError if it cannot be used."""
    if values.shape != rows.rewards.shape:
        raise ValueError(f"stage {stage} returned shape {tuple(values.shape)} for rewards {tuple(rows.rewards.shape)}")
    require_finite(values, f"stage {stage}", where=rows.stats.group >= 0)
    return values.to(rows.rewards.dtype).masked_fill(rows.stats.group < 0, 0)


def registered() -> list[str]:
    """Names of all stages, taking part or not."""
    return sorted(_STAGES)


def needing_groups(gsd: Mapping[str, Any]) -> list[str]:
    """The stages that take part under ``gsd`` and need a trainer that sees whole groups."""
    return sorted(name for name in _MEMORIES if gsd.get(name) is not None)


def build_memory(name: str, gsd: Mapping[str, Any]) -> StageMemory:
    """The memory of stage ``name``; a ValueError that names the section where that is wrong."""
    try:
        return _MEMORIES[name](gsd[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"algorithm.gsd.{name}: {error}") from error


def stages(gsd: Mapping[str, Any], place: Place) -> dict[str, Callable]:
    """The stages of ``place`` that take part under ``gsd``, by name."""
    return {
        name: function
        for name, (where, function) in sorted(_STAGES.items())
        if where == place and gsd.get(name) is not None
    }
