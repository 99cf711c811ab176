"""The choices of the config groups, such as ``algo=NAME``, and the YAML files in which they are.

This module imports neither Hydra nor OmegaConf: shell completion waits for it at every key press.
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from verl_gsd import extension
from verl_gsd.errors import ConfigError

GROUPS = ("algo", "task", "hardware", "budget", "sampler", "silent_groups", "logger", "recipe")
_PACKAGE = Path(__file__).parent
#: Recipes are next to the package in a checkout, and inside it in a wheel.
_RECIPES = next(
    (p for p in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if p.is_dir()), _PACKAGE / "config" / "recipe"
)
#: The end of the first sentence. An abbreviation such as "Dr." is too short to end one.
_SENTENCE = re.compile(r"(.*?[\w)]{3}\.)(?:\s|$)")


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts, sorted. Files whose name starts with ``_`` are shared parts.

    Raises:
        ConfigError: an installed package has a file of the same name as another one.
    """
    return [name for name in files(group) if not name.rpartition("/")[2].startswith("_")]


def about(group: str, name: str) -> str:
    """The first sentence of the comment at the beginning of a choice's file; empty if the file has no such comment."""
    lines: list[str] = []
    for line in files(group)[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    comment = " ".join(lines)
    sentence = _SENTENCE.match(comment)
    return sentence[1] if sentence else comment


def files(group: str) -> dict[str, Path]:
    """Name -> file of every YAML file of a group."""
    file_of: dict[str, Path] = {}
    for folder in _folders(group):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).as_posix().removesuffix(".yaml")
            if name in file_of:
                raise ConfigError(
                    f"{group}={name} is defined twice: {file_of[name]} and {path}. Rename one of the two."
                )
            file_of[name] = path
    return dict(sorted(file_of.items()))


def _folders(group: str) -> list[Path]:
    if group == "recipe":
        return [_RECIPES]
    declarations = extension.declarations() if group == "algo" else []
    others = [_package_folder(declaration, group) for declaration in declarations if declaration.configs is not None]
    return [_PACKAGE / "config" / group, *others]


def _package_folder(declaration: extension.Declaration, group: str) -> Path:
    """The folder of a group's files in the package that an extension names (``Declaration.configs``)."""
    package = declaration.configs or ""
    return extension.guarded(
        declaration, "configs", lambda: Path(str(importlib.resources.files(package).joinpath(group)))
    )
