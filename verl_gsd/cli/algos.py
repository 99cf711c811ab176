"""``verl-gsd algos``: lists the algorithms, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from verl_gsd.console import fail, out

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.declaration import Declaration


@dataclass(frozen=True)
class ListedChoice:
    """A row of the list.

    Attributes:
        word: what selects it, for the command line.
        about: one sentence.
        needs: what a run needs for it besides prompts and a verifier.
    """

    word: str
    about: str
    needs: tuple[str, ...]


def algos() -> None:
    """List the algorithms, one line each, and what they need.

    Algorithms of other installed packages are included.

    Examples:
        verl-gsd algos
        verl-gsd train algo=dr_grpo task=arithmetic hardware=cpu --dry-run
    """
    from verl_gsd.errors import OUR_MODES, ConfigError

    try:
        algorithms = list(algorithm_entries())
        additions = list(addition_entries())
    except ConfigError as error:
        fail(str(error))
    _print("Algorithms, one per run", algorithms)
    _print("Additions to an algorithm", additions)
    lines = [
        f"our trainer modes: trainer.v1.trainer_mode={' or '.join(OUR_MODES.values())}. The default is "
        f"{OUR_MODES['sync']}.",
        "acc: the reward function returns 1 for a right and 0 for a wrong response as acc, beside the score.",
        "To see what a choice does to advantages, add --dry-run to verl-gsd train.",
    ]
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def algorithm_entries() -> Iterator[ListedChoice]:
    """One entry per choice of ``algo=``.

    Raises:
        ConfigError: a file of another package cannot be read.
    """
    from verl_gsd.config_choices import about, choices

    for name in choices("algo"):
        yield ListedChoice(f"algo={name}", about("algo", name), _needs(_config("algo", name)))


def addition_entries() -> Iterator[ListedChoice]:
    """One entry per extension that no choice of ``algo=`` has.

    Raises:
        ConfigError: a file of another package cannot be read.
    """
    from verl_gsd import extension
    from verl_gsd.config_choices import choices

    in_algorithms = {one.name for name in choices("algo") for one in _extensions(_config("algo", name))}
    for declaration in extension.declarations():
        if declaration.name not in in_algorithms:
            word, config = _addition(declaration)
            yield ListedChoice(word, declaration.about, _needs(config))


def _addition(declaration: Declaration) -> tuple[str, DictConfig]:
    """How to add the extension: a choice of the group with its name, or else its section. Also the resulting config."""
    from omegaconf import OmegaConf

    from verl_gsd.config_choices import GROUPS, choices

    name = declaration.name
    if name in GROUPS:
        for choice in choices(name):
            config = _config(name, choice)
            if declaration in _extensions(config):
                return f"{name}={choice}", config
    config = OmegaConf.create()
    OmegaConf.update(config, f"algorithm.gsd.{name}", {}, force_add=True)
    return f"algorithm.gsd.{name}", config


def _config(group: str, name: str) -> DictConfig:
    from verl_gsd import config

    config.store_groups()  # registers the resolvers that the files use
    return config.load_with_defaults(group, name)


def _extensions(config: DictConfig) -> list[Declaration]:
    from omegaconf import OmegaConf

    from verl_gsd import extension

    return extension.active(OmegaConf.select(config, "algorithm.gsd"))


def _needs(config: DictConfig) -> tuple[str, ...]:
    """What a run with these settings needs, by the declarations of its extensions."""
    from omegaconf import OmegaConf

    active = _extensions(config)
    needs = [declaration.needs for declaration in active if declaration.needs]
    filters = OmegaConf.select(config, "algorithm.filter_groups.enable") is True
    reads_metric = filters and OmegaConf.select(config, "algorithm.filter_groups.metric") == "acc"
    if reads_metric or any(declaration.reads_accuracy for declaration in active):
        needs.append("acc")
    return (*needs, *_modes(config))


def _modes(config: DictConfig) -> list[str]:
    """The trainer modes that the extensions work with; empty if they work with all of them."""
    from verl_gsd.conflicts import MODE, conflicts_in, with_changes
    from verl_gsd.errors import OUR_MODES

    def works(mode: str) -> bool:
        return not any(of.applies and of.key == MODE for of in conflicts_in(with_changes(config, {MODE: mode})))

    ours = list(OUR_MODES.values())
    modes = [mode for mode in (*OUR_MODES, *ours) if works(mode)]
    if modes == [*OUR_MODES, *ours]:
        return []
    return ["our trainer modes" if modes == ours else f"trainer_mode {' or '.join(modes)}"]


def _print(title: str, entries: list[ListedChoice]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("flag", no_wrap=True, overflow="fold")  # a word that is cut off selects nothing
    table.add_column("what it does")
    table.add_column("needs")
    for entry in entries:
        table.add_row(escape(entry.word), escape(entry.about), escape("; ".join(entry.needs)))
    out.print(table)
