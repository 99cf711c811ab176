"""Finds the label and the seed of a run on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.dotted_keys import value_at
from verl_gsd.rundir import RunDirectory

_SEEDED = re.compile(r"(?:(?P<before>.+)-)?seed_(?P<seed>\d+)")
#: The time that ``verl-gsd submit`` puts into run names.
_SUBMITTED_AT = re.compile(r"-\d{8}-\d{6}")


def label_and_seed(run: Path, config: Mapping[str, Any], label: str | None) -> tuple[str, int]:
    """Return a run's label and seed.

    Both come from the folder name: ``grpo/seed_3``, or ``arithmetic-grpo-...-seed_3`` as ``verl-gsd submit`` names
    runs. For other folder names, the label is the run's ``algo=`` word and the seed is ``data.seed``.

    Args:
        config: the run's config; empty if it has none.
        label: overrides the label.

    Raises:
        ValueError: the label or the seed is unknown, or the folder and the config have different seeds.
    """
    folder = run.resolve()
    match, configured = _SEEDED.fullmatch(folder.name), value_at(config, "data.seed")
    seed = int(match["seed"]) if match else configured
    if not isinstance(seed, int):
        raise ValueError(
            f"{run}: neither the folder name nor data.seed in its config gives a seed. Rename the folder, for example "
            "to LABEL/seed_1"
        )
    if isinstance(configured, int) and configured != seed:
        raise ValueError(
            f"{run}: the folder name gives seed {seed}, but its config has data.seed={configured}. Rename the folder"
        )
    if label is None and match:
        label = _SUBMITTED_AT.sub("", match["before"]) if match["before"] else folder.parent.name
    layout = RunDirectory(run)
    words = layout.read_yaml(layout.overrides) or []
    algos = [word.removeprefix("algo=") for word in words if isinstance(word, str) and word.startswith("algo=")]
    if label is None and not algos:
        raise ValueError(f"{run}: no label in its folder name, and no algo= in its overrides. Use LABEL={run}")
    return label or algos[-1], seed
