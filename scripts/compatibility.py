"""Write the table of what works with what into docs/switching.md, from the declarations of the extensions.

Run ``python scripts/compatibility.py`` after a change of a declared conflict. With ``--check`` it writes nothing and
fails if the page is not what the declarations say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.declaration import WEIGHS, Conflict
from verl_gsd.run.checks.conflicts import MODE, Condition, all_conflicts, conflicts_in, others_that_weigh

PAGE = Path(__file__).parents[1] / "docs" / "switching.md"
BEGIN, END = "<!-- compatibility: begin, made by scripts/compatibility.py -->", "<!-- compatibility: end -->"

#: What a run can add to its algorithm: the title of a column, and the file that has the section.
ADDITIONS = {
    "HA-DW": ("algo", "_hadw"),
    "DaGRPO's mask": ("algo", "_mask"),
    "demonstrations": ("algo", "_demonstrations"),
    "budget": ("budget", "adaptive"),
    "sampler": ("sampler", "disagreement"),
}
#: Settings with a column of their own: key -> an example of what a run may set.
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
        """The number of the reason why the extension ``name`` has this conflict."""
        names = self._names.setdefault(conflict, [])
        if name not in names:
            names.append(name)
        return list(self._names).index(conflict) + 1

    def lines(self) -> Iterator[str]:
        for number, (conflict, names) in enumerate(self._names.items(), start=1):
            extensions = ", ".join(f"`algorithm.gsd.{name}`" for name in names)
            when = f", where `{conflict.when}`" if conflict.when else ""
            yield f"{number}. {extensions} with {_named(conflict, names)}{when}: {conflict.reason}. {conflict.fix}"


def _named(conflict: Conflict, names: Sequence[str]) -> str:
    if conflict.setting != WEIGHS:
        return f"`{conflict.setting}`"
    declared = [of for of in extension.declarations() if extension.is_ours(of)]
    of_names = [of for of in declared if of.name in names]
    explicit = {conflict.setting for of in of_names for conflict in of.conflicts}
    others = [f"algorithm.gsd.{other.name}" for of in of_names for other in others_that_weigh(of, declared)]
    shown = ", ".join(f"`{other}`" for other in others if other not in explicit)
    return f"any other extension that weighs advantages (of ours {shown})"


def of_group(group: str, name: str) -> DictConfig:
    """What a choice says, with the files that it is based on."""
    node = groups.load(group, name)
    based_on = [base for base in node.pop("defaults", []) if base != "_self_"]
    merged = OmegaConf.merge(*(of_group(group, base) for base in based_on), node)
    assert isinstance(merged, DictConfig)
    return merged


def rows() -> dict[str, DictConfig]:
    """Choices by name. ``algo=`` is left out of the names."""
    choices = {f"`{name}`": of_group("algo", name) for name in groups.choices("algo")}
    return choices | {
        f"`{group}={name}`": of_group(group, name) for group, name in ADDITIONS.values() if group != "algo"
    }


def with_addition(row: DictConfig, addition: DictConfig, notes: Notes) -> str:
    """Whether a run of ``row`` can have ``addition``, too."""
    own, added = ({of.name for of in extension.active(config.algorithm.get("gsd"))} for config in (row, addition))
    if added <= own:
        return "has it"
    together = OmegaConf.merge(row, addition)
    assert isinstance(together, DictConfig)
    alone = {(found.declaration.name, found.key) for config in (row, addition) for found in conflicts_in(config)}
    found = [one for one in conflicts_in(together) if (one.declaration.name, one.key) not in alone]
    numbers = {notes.number(one.declaration.name, one.conflict) for one in found}
    return _cell("no" if any(one.applies for one in found) else "partly", numbers)


def with_settings(row: DictConfig, settings: Mapping[str, object], notes: Notes) -> str:
    """Whether a run of ``row`` can have each of these settings."""
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
    """Which settings without a column a run of ``row`` cannot have."""
    in_columns = {key for settings in SETTINGS.values() for key in settings}
    others = [pair for pair in _conflicts_of(row) if Condition.parse(pair[1].setting).key not in in_columns]
    return _cell("not all", {notes.number(*pair) for pair in others})


def _conflicts_of(row: DictConfig) -> list[tuple[str, Conflict]]:
    """The conflicts with settings of the extensions of ``row``. Those with other extensions are additions."""
    return [
        (declaration.name, conflict)
        for declaration in extension.active(row.algorithm.get("gsd"))
        for conflict in all_conflicts(declaration)
        if conflict.setting != WEIGHS and extension.declared(conflict.setting.removeprefix("algorithm.gsd.")) is None
    ]


def _cell(answer: str, numbers: set[int]) -> str:
    return f"{answer} ({', '.join(map(str, sorted(numbers)))})" if numbers else "yes"


def table() -> str:
    """The table and its notes."""
    groups.store_groups()
    notes = Notes()
    additions = {title: of_group(*place) for title, place in ADDITIONS.items()}
    by_cells: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows().items():
        cells = [with_addition(row, addition, notes) for addition in additions.values()]
        cells += [with_settings(row, settings, notes) for settings in SETTINGS.values()]
        cells.append(with_other_settings(row, notes))
        by_cells.setdefault(tuple(cells), []).append(name)
    titles = ("", *additions, *SETTINGS, OTHER_SETTINGS)
    lines = [_line(titles), _line(["---"] * len(titles))]
    lines += [_line([", ".join(names), *cells]) for cells, names in by_cells.items()]
    return "\n".join([*lines, "", *notes.lines()])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """The page with the table in place of what is between the two marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE}: the marks are missing. Add the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if the page is out of date.")
    is_check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    if (wanted := with_table(page)) == page:
        return
    if is_check:
        sys.exit(f"{PAGE.name} is not what the declarations say. Run python scripts/compatibility.py.")
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
