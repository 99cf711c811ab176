"""From rewards to advantages, in the order every algorithm here shares:

    centre -> divide by (sigma + eps)^alpha -> multiply by the weights

The dial in the middle is always there (alpha = 0 divides by 1). At either end extensions take part
(``extension.py``) where the config has their section, ``algorithm.gsd.<name>``: at most one centres, any number weigh,
in their stated order. ``register_stage`` makes an extension of one function.

sigma is the standard deviation of the group's original rewards, unless the centring extension leaves rows out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from verl_gsd import dial
from verl_gsd.dial_settings import dial_settings
from verl_gsd.extension import Declaration, Extension, build, call_hook, declared, overrides, register, require_free
from verl_gsd.groups import GroupStats, Labels, float_rows, group_stats, require_finite

Place = Literal["centre", "weight"]


@dataclass(frozen=True)
class Rows:
    """What the chain knows about a batch of N responses.

    Attributes:
        rewards: (N,) float.
        stats: the groups and their figures, in float64.
        columns: further knowledge, one entry a row, by name (verifier accuracy, judge scores): what the extensions
            that take part gave as their ``stage_inputs``; empty under a trainer of verl's own.
    """

    rewards: torch.Tensor
    stats: GroupStats
    columns: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str, extension: str) -> Any:
        """A column that ``extension`` cannot do without.

        Raises:
            ValueError: the trainer did not provide it.
        """
        if name not in self.columns:
            raise ValueError(
                f"algorithm.gsd.{extension} needs {name} of every row, which this trainer does not provide"
            )
        return self.columns[name]


def register_stage(
    name: str, place: Place, *, order: int = 100, settings: type | None = None
) -> Callable[[Callable], Callable]:
    """Register a function as an extension that takes part where the config has ``algorithm.gsd.<name>``.

    It works under every trainer and keeps nothing. What must see whole groups or remembers is an
    ``extension.Extension`` with these hooks and further ones.

    Args:
        name: of the extension and of its config section.
        place: ``centre``: the function takes (rows, section) and returns what ``Extension.centre`` does. ``weight``: it
            takes (rows, advantages, section) and returns what ``Extension.weight`` does.
        order, settings: see ``extension.Declaration``. With ``settings`` the function gets that model, not the section.

    Raises:
        ValueError: no such place, or the name is a setting of ours or another extension's.
    """
    if place not in get_args(Place):
        raise ValueError(f"place={place!r}: write one of {', '.join(get_args(Place))}")

    require_free(name)

    def register_function(function: Callable) -> Callable:
        known = declared(name)
        if known is not None and getattr(known.runtime, "stage", None) == (place, function):
            return function

        def centre(self: Extension, rows: Rows) -> Any:
            return function(rows, self.settings)

        def weight(self: Extension, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
            return function(rows, advantages, self.settings)

        hooks = {"centre": centre, "weight": weight}
        runtime = type(
            name, (Extension,), {place: hooks[place], "stage": (place, function), "__module__": function.__module__}
        )
        register(Declaration(name, runtime, order=order, settings=settings, needs_groups=False))
        return function

    return register_function


def advantages(
    rewards: torch.Tensor,
    index: Labels,
    gsd: Mapping[str, Any],
    *,
    mask: torch.Tensor | None = None,
    columns: Mapping[str, Any] | None = None,
    extensions: Mapping[str, Extension] | None = None,
) -> torch.Tensor:
    """Run the chain that ``gsd``, the config section ``algorithm.gsd``, describes.

    Args:
        rewards, index, mask: as ``dial.dial_advantage``.
        gsd: ``alpha``, ``ddof``, ``eps`` and a section for every extension that takes part.
        columns: see ``Rows.columns``.
        extensions: those of a run that keeps them from step to step; built from ``gsd`` where None.

    Returns:
        (N,) in the rewards' dtype, float32 at least.

    Raises:
        ValueError: a setting of the dial is missing, a section is wrong, two extensions centre, or what one returned
            has another shape or is not finite.
        ExtensionError: an extension raised.
    """
    settings = dial_settings(gsd)
    rewards = float_rows(rewards, "rewards")
    columns = {  # a trainer makes its columns on the CPU
        name: column.to(rewards.device) if isinstance(column, torch.Tensor) else column
        for name, column in (columns or {}).items()
    }
    rows = Rows(rewards, group_stats(rewards.double(), index, mask), columns)
    if extensions is None:
        extensions = build(gsd)
    centred, stats = _centre(rows, extensions)
    result = dial.divide(centred, stats, **settings)
    for name, extension in extensions.items():
        if overrides(extension, "weight"):
            result = result * _per_row(call_hook(name, extension, "weight", rows, result), rows, name)
    return result


def _centre(rows: Rows, extensions: Mapping[str, Extension]) -> tuple[torch.Tensor, GroupStats]:
    for name, extension in extensions.items():
        if overrides(extension, "centre"):
            found = call_hook(name, extension, "centre", rows)
            centred, stats = found if isinstance(found, tuple) else (found, rows.stats)
            return _per_row(centred, rows, name), stats
    return dial.centre(rows.rewards, rows.stats), rows.stats


def _per_row(values: torch.Tensor, rows: Rows, name: str) -> torch.Tensor:
    """What the extension ``name`` returned, in the rewards' dtype and 0 in rows of no group.

    Raises:
        ValueError: it has another shape, or an entry that counts is not finite.
    """
    if values.shape != rows.rewards.shape:
        raise ValueError(f"stage {name} returned shape {tuple(values.shape)} for rewards {tuple(rows.rewards.shape)}")
    require_finite(values, f"stage {name}", where=rows.stats.group >= 0)
    return values.to(rows.rewards.dtype).masked_fill(rows.stats.group < 0, 0)
