"""Write the compatibility table into docs/switching.md, based on the declarations of the extensions.

Run ``python scripts/compatibility.py`` after changing a declared conflict. With ``--check``, it changes nothing, and
fails if the page does not match the declarations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.conflicts import MODE, Condition, ConflictInConfig, all_conflicts, conflicts_in, others_that_weigh
from verl_gsd.declaration import WEIGHS, Conflict

PAGE = Path(__file__).parents[1] / "docs" / "switching.md"
BEGIN, END = "<!-- compatibility: begin, made by scripts/compatibility.py -->", "<!-- compatibility: end -->"

#: Title of a column -> (group, name) of the YAML file with the section that a run can add to its algorithm.
ADDITIONS = {
    "HA-DW": ("algo", "_hadw"),
    "DaGRPO's mask": ("algo", "_mask"),
    "demonstrations": ("algo", "_demonstrations"),
    "budget": ("budget", "adaptive"),
    "sampler": ("sampler", "disagreement"),
    "silent groups left out": ("silent_groups", "left_out"),
}
#: Title of a column -> the settings that it is about: key -> example of a value.
SETTINGS: dict[str, dict[str, object]] = {
    "dynamic sampling": {"algorithm.filter_groups.enable": True},
    "asynchronous modes": {MODE: "gsd_colocate_async"},
    "verl's trainer modes": {MODE: "sync"},
    "KL in the reward": {"algorithm.use_kl_in_reward": True},
    "critic": {"critic.enable": True},
    "rollout correction": {
        "algorithm.rollout_correction.bypass_mode": True,
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.rollout_correction.rollout_rs": "token_k1",
    },
}
OTHER_SETTINGS = "other settings"


class Notes:
    """Numbered reasons. Extensions with the same conflict share a number."""

    def __init__(self) -> None:
        self._names: dict[Conflict, list[str]] = {}

    def number(self, name: str, conflict: Conflict) -> int:
        """The number of this conflict in the list of reasons. ``name`` is the extension that declares it."""
        names = self._names.setdefault(conflict, [])
        if name not in names:
            names.append(name)
        return list(self._names).index(conflict) + 1

    def lines(self) -> Iterator[str]:
        """The numbered list below the table."""
        for number, (conflict, names) in enumerate(self._names.items(), start=1):
            extensions = ", ".join(f"`algorithm.gsd.{name}`" for name in names)
            setting = _describe_setting(conflict, names) + (f", if `{conflict.when}`" if conflict.when else "")
            yield f"{number}. {extensions} with {setting}: {conflict.reason}. {conflict.fix}"


def _describe_setting(conflict: Conflict, names: Sequence[str]) -> str:
    """The conflict's setting in words. ``names`` are the extensions that declare the conflict."""
    if conflict.setting != WEIGHS:
        return f"`{conflict.setting}`"
    ours = [declaration for declaration in extension.declarations() if extension.is_ours(declaration)]
    declaring = [declaration for declaration in ours if declaration.name in names]
    explicit = {conflict.setting for declaration in declaring for conflict in declaration.conflicts}
    others = [
        f"algorithm.gsd.{other.name}" for declaration in declaring for other in others_that_weigh(declaration, ours)
    ]
    listed = ", ".join(f"`{other}`" for other in others if other not in explicit)
    return f"any other extension that weighs advantages (in this package {listed})"


def rows() -> dict[str, DictConfig]:
    """Title of each row -> the config of its choice. Titles do not contain ``algo=``."""
    choices = {f"`{name}`": groups.load_with_defaults("algo", name) for name in groups.choices("algo")}
    return choices | {
        f"`{group}={name}`": groups.load_with_defaults(group, name)
        for group, name in ADDITIONS.values()
        if group != "algo"
    }


def with_addition(row: DictConfig, addition: DictConfig, notes: Notes) -> str:
    """The cell that tells whether a run of ``row`` can also have ``addition``."""
    present, added = (
        {declaration.name for declaration in extension.active(config.algorithm.get("gsd"))}
        for config in (row, addition)
    )
    if added <= present:
        return "has it"
    # Of keys that both set, such as the loss, a run can have either value.
    conflicts = min((_new_conflicts(*order) for order in ((row, addition), (addition, row))), key=_rank)
    numbers = {notes.number(item.declaration.name, item.conflict) for item in conflicts}
    return _cell("no" if any(item.applies for item in conflicts) else "partly", numbers)


def _new_conflicts(first: DictConfig, second: DictConfig) -> list[ConflictInConfig]:
    """Conflicts of both together that neither has on its own. The second sets the keys that both set."""
    together = OmegaConf.merge(first, second)
    assert isinstance(together, DictConfig)
    separate = {(item.declaration.name, item.key) for config in (first, second) for item in conflicts_in(config)}
    return [item for item in conflicts_in(together) if (item.declaration.name, item.key) not in separate]


def _rank(conflicts: Sequence[ConflictInConfig]) -> tuple[bool, bool]:
    """Whether conflicts apply, and whether there are any. The smaller rank is the better choice."""
    return any(item.applies for item in conflicts), bool(conflicts)


def with_settings(row: DictConfig, settings: Mapping[str, object], notes: Notes) -> str:
    """The cell that tells whether a run of ``row`` can have these settings."""
    rejected, partly, numbers = set(), False, set()
    for name, conflict in _conflicts_of(row):
        condition = Condition.parse(conflict.setting)
        example = OmegaConf.create()
        if condition.key in settings:
            OmegaConf.update(example, condition.key, settings[condition.key])
        if condition.holds(example):
            numbers.add(notes.number(name, conflict))
            if not conflict.when or Condition.parse(conflict.when).holds(row):
                rejected.add(condition.key)
            else:
                partly = True
    return _cell("no" if rejected == set(settings) else "partly" if partly and not rejected else "not all", numbers)


def with_other_settings(row: DictConfig, notes: Notes) -> str:
    """The cell with the settings that a run of ``row`` cannot have and that have no column of their own."""
    in_columns = {key for settings in SETTINGS.values() for key in settings}
    others = [pair for pair in _conflicts_of(row) if Condition.parse(pair[1].setting).key not in in_columns]
    return _cell("not all", {notes.number(*pair) for pair in others})


def _conflicts_of(row: DictConfig) -> list[tuple[str, Conflict]]:
    """(extension, conflict) for all conflicts with settings. Conflicts with other extensions are not included."""
    return [
        (declaration.name, conflict)
        for declaration in extension.active(row.algorithm.get("gsd"))
        for conflict in all_conflicts(declaration)
        if conflict.setting != WEIGHS and extension.declared(conflict.setting.removeprefix("algorithm.gsd.")) is None
    ]


def _cell(answer: str, numbers: set[int]) -> str:
    return f"{answer} ({', '.join(map(str, sorted(numbers)))})" if numbers else "yes"


def table() -> str:
    """The table, followed by the numbered reasons."""
    groups.store_groups()
    notes = Notes()
    additions = {title: groups.load_with_defaults(*choice) for title, choice in ADDITIONS.items()}
    names_by_cells: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows().items():
        cells = [with_addition(row, addition, notes) for addition in additions.values()]
        cells += [with_settings(row, settings, notes) for settings in SETTINGS.values()]
        cells.append(with_other_settings(row, notes))
        names_by_cells.setdefault(tuple(cells), []).append(name)
    titles = ("", *additions, *SETTINGS, OTHER_SETTINGS)
    lines = [_line(titles), _line(["---"] * len(titles))]
    lines += [_line([", ".join(names), *cells]) for cells, names in names_by_cells.items()]
    return "\n".join([*lines, "", *notes.lines()])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """The page, with the table between the two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE}: the marks are missing. Add the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="Change nothing, and fail if the page is out of date.")
    is_check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    if (updated := with_table(page)) == page:
        return
    if is_check:
        sys.exit(f"{PAGE.name} does not match the declarations. Run python scripts/compatibility.py.")
    PAGE.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    main()
