"""The package of docs/extending.md, installed as somebody else's: its files are the page's code blocks."""

import os
import re
from pathlib import Path

from places import ROOT

_FILE = re.compile(r"`(trend/[\w./]+)`(?:(?!\n\n).)*:\n\n```\w+\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """Path below the package's folder -> text."""
    return dict(_FILE.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))


def install(folder: Path) -> dict[str, str]:
    """Write the package below ``folder`` and return the environment in which Python finds it."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    metadata = folder / "trend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl_gsd.extensions]\ntrend = trend\n")
    return os.environ | {"PYTHONPATH": str(folder)}
