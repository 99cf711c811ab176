"""What a run on disk is called: the label of its method, and its seed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from verl_gsd.dotted_keys import value_at
from verl_gsd.rundir import RunDirectory

_SEEDED = re.compile(r"(?:(?P<before>.+)-)?seed_(?P<seed>\d+)")
#: What ``verl-gsd submit`` puts into the names of runs that were sent together.
_SENT = re.compile(r"-\d{8}-\d{6}")


def label_and_seed(run: Path, config: Mapping[str, Any], label: str | None) -> tuple[str, int]:
    """A run's label and seed: those of its folder, ``grpo/seed_3``, or ``arithmetic-grpo-...-seed_3`` as ``verl-gsd
    submit`` names it; another folder's are its ``algo=`` word and ``data.seed``.

    Args:
        config: of the run; empty where there is none.
        label: instead of what is found.

    Raises:
        ValueError: one of the two is said nowhere, or the folder and the config say different seeds.
    """
    folder = run.resolve()
    match, configured = _SEEDED.fullmatch(folder.name), value_at(config, "data.seed")
    seed = int(match["seed"]) if match else configured
    if not isinstance(seed, int):
        raise ValueError(f"{run}: no seed in its name nor in its config (data.seed). Name it LABEL/seed_1, say")
    if isinstance(configured, int) and configured != seed:
        raise ValueError(f"{run}: its folder says seed {seed} and its config data.seed={configured}. Rename the folder")
    if label is None and match:
        label = _SENT.sub("", match["before"]) if match["before"] else folder.parent.name
    words = read_yaml(RunDirectory(run).overrides) or []
    chosen = [word.removeprefix("algo=") for word in words if isinstance(word, str) and word.startswith("algo=")]
    if label is None and not chosen:
        raise ValueError(f"{run}: nothing says what it is called. Write LABEL={run}")
    return label or chosen[-1], seed


def read_yaml(path: Path) -> Any:
    """What the file has; None where there is none.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable: {error}") from error
