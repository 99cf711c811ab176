"""The package of docs/extending.md, installed as somebody else's: its files are the page's code blocks."""

import os
import re
import sys
from pathlib import Path

from places import ROOT

PYTHON = sys.executable
_FILE = re.compile(r"`(trend/[\w./]+)`(?:(?!\n\n).)*:\n\n```\w+\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """Path below the package's folder -> text."""
    return dict(_FILE.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))


def install(folder: Path) -> dict[str, str]:
    """Write the page's package below ``folder`` and return the environment in which Python finds it."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return distribute(folder, "trend")


def distribute(folder: Path, module: str) -> dict[str, str]:
    """Give ``module`` below ``folder`` an entry point, and return the environment in which Python finds it."""
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[verl_gsd.extensions]\n{module} = {module}\n")
    return os.environ | {"PYTHONPATH": str(folder)}
