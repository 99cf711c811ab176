"""Runs that this user started, as ``verl-gsd train`` signs them."""

from __future__ import annotations

from pathlib import Path

import yaml

from verl_gsd.run import trust
from verl_gsd.rundir import RunDirectory


def make_own(run: Path, monkeypatch, words: tuple[str, ...] = ("algo=grpo",)) -> None:
    """Sign the run in the folder ``run``, with a key that this test has for itself."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(run.parent / "config"))
    layout = RunDirectory(run)
    trust.write_words(layout, yaml.safe_dump(list(words)).encode())
    assert trust.distrust(layout) is None
