"""Tells a run's folder from a folder of runs, for the commands that take several runs."""

from __future__ import annotations

import shlex
from pathlib import Path


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder that is not a run itself, such as the folder of all seeds; empty if there are none."""
    if not folder.is_dir() or _is_run(folder):
        return []
    return sorted(path for path in folder.iterdir() if _is_run(path))


def pattern_of(folder: Path, runs: list[Path]) -> str:
    """A word that a shell expands to the ``runs`` in ``folder``: FOLDER/seed_* if all of them are seeds."""
    are_seeds = all(path.name.startswith("seed_") for path in runs)
    return f"{shlex.quote(str(folder))}/{'seed_*' if are_seeds else '*'}"


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("overrides.yaml", "records", "metrics"))
