"""The chain from rewards to advantages, which all algorithms share:

    centre -> divide by (sigma + eps)^alpha -> multiply by the weights

The division is the dial (``dial.py``), which has a floor of sigma for alpha > 1; alpha = 0 divides by 1. Extensions
(``extension.py``) provide the other steps if the config has their section, ``algorithm.gsd.<name>``. At most one
extension centres. Any number of them weigh, in their stated order. ``register_stage`` makes an extension from one
function.

Sigma is the standard deviation of the group's original rewards, unless the centring extension excludes rows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from verl_gsd import dial
from verl_gsd.dial_settings import dial_settings
from verl_gsd.extension import (
    Declaration,
    Extension,
    build,
    call_hook,
    check_name_is_free,
    declared,
    overrides,
    register,
)
from verl_gsd.groups import GroupStats, Labels, float_rows, group_stats, require_finite

Place = Literal["centre", "weight"]


@dataclass(frozen=True)
class Rows:
    """The input of the chain: a batch of N responses.

    Attributes:
        rewards: (N,) float.
        stats: the groups and their statistics, in float64.
        columns: name -> one entry per row, for example the verifier's accuracy or a judge's scores. The extensions
            provide them as ``stage_inputs``. Empty under one of verl's own trainers.
    """

    rewards: torch.Tensor
    stats: GroupStats
    columns: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str, extension: str) -> Any:
        """A column that ``extension`` needs.

        Raises:
            ValueError: the trainer did not provide it.
        """
        if name not in self.columns:
            raise ValueError(
                f"algorithm.gsd.{extension} needs the column {name}, which this trainer does not provide. Set "
                "trainer.v1.trainer_mode=gsd_sync"
            )
        return self.columns[name]


def register_stage(
    name: str, place: Place, *, order: int = 100, settings: type | None = None
) -> Callable[[Callable], Callable]:
    """Register a function as an extension. It takes part if the config has the section ``algorithm.gsd.<name>``.

    The extension works under every trainer and has no memory. If you need whole groups or a memory, write an
    ``extension.Extension``, which has the same hooks and more.

    Args:
        name: name of the extension and of its config section.
        place: ``centre``: the function takes (rows, settings) and returns the same as ``Extension.centre``. ``weight``:
            it takes (rows, advantages, settings) and returns the same as ``Extension.weight``.
        order, settings: see ``declaration.Declaration``. Without ``settings``, the function gets the config section.

    Raises:
        ValueError: the place is unknown, or the name is reserved or taken.
    """
    if place not in get_args(Place):
        raise ValueError(f"place={place!r} is unknown. Use one of {', '.join(get_args(Place))}")

    check_name_is_free(name)

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
    metrics: MutableMapping[str, float] | None = None,
) -> torch.Tensor:
    """Run the chain that ``gsd``, the config section ``algorithm.gsd``, describes.

    Args:
        rewards, index, mask: see ``dial.dial_advantage``.
        gsd: ``alpha``, ``ddof``, ``eps`` and one section per extension that takes part.
        columns: see ``Rows.columns``.
        extensions: the run's extensions, which keep their state from step to step. None: they are built from ``gsd``.
        metrics: gets the metrics of the division (``dial.floor_metrics``).

    Returns:
        (N,) in the rewards' dtype, float32 at least.

    Raises:
        ValueError: a setting of the dial is missing, a section is wrong, two extensions centre, or an extension
            returned a tensor of another shape or a value that is not finite.
        ExtensionError: a hook raised an error.
    """
    settings = dial_settings(gsd)
    rewards = float_rows(rewards, "rewards")
    columns = {  # the trainer creates its columns on the CPU
        name: column.to(rewards.device) if isinstance(column, torch.Tensor) else column
        for name, column in (columns or {}).items()
    }
    rows = Rows(rewards, group_stats(rewards.double(), index, mask), columns)
    if extensions is None:
        extensions = build(gsd)
    centred, stats = _centre(rows, extensions)
    scale = dial.reward_scale(rewards, rows.stats)
    result = dial.divide(centred, stats, **settings, scale=scale)
    if metrics is not None:
        metrics.update(dial.floor_metrics(stats, alpha=settings["alpha"], ddof=settings["ddof"], scale=scale))
    for name, extension in extensions.items():
        if overrides(extension, "weight"):
            result = result * _per_row(call_hook(name, extension, "weight", rows, result), rows, name)
    return result


def _centre(rows: Rows, extensions: Mapping[str, Extension]) -> tuple[torch.Tensor, GroupStats]:
    for name, extension in extensions.items():
        if overrides(extension, "centre"):
            result = call_hook(name, extension, "centre", rows)
            centred, stats = result if isinstance(result, tuple) else (result, rows.stats)
            return _per_row(centred, rows, name), stats
    return dial.centre(rows.rewards, rows.stats), rows.stats


def _per_row(values: torch.Tensor, rows: Rows, name: str) -> torch.Tensor:
    """The tensor that the extension ``name`` returned, in the rewards' dtype; 0 in rows of no group.

    Raises:
        ValueError: it has another shape, or it is not finite in a row of a group.
    """
    if values.shape != rows.rewards.shape:
        raise ValueError(
            f"algorithm.gsd.{name} returned shape {tuple(values.shape)}. "
            f"Return one number per response, shape {tuple(rows.rewards.shape)}"
        )
    require_finite(values, f"algorithm.gsd.{name}", where=rows.stats.group >= 0)
    return values.to(rows.rewards.dtype).masked_fill(rows.stats.group < 0, 0)
