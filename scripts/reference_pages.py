"""Pages of the documentation that are made from the code: commands, settings, choices, figures and recipes.

``mkdocs.yml`` names this file as a hook: every build makes these pages again, and no copy of them is stored. It imports
declarations and settings, which need neither torch nor verl. Extensions of other packages are left out.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.cli.main import app
from verl_gsd.declaration import Declaration
from verl_gsd.dotted_keys import value_at
from verl_gsd.run.checks.limits import LimitSettings
from verl_gsd.scalars import as_yaml
from verl_gsd.settings import SectionSettings, allowed_values

ROOT = Path(__file__).parents[1]
#: Group of ``verl_gsd/config`` -> what its choices set.
GROUPS = {
    "algo": "the algorithm: estimator, loss, clips and the sections of extensions.",
    "task": "a task that this package makes on your machine: data, verifier and model.",
    "hardware": "the machine: engine, sharding and memory.",
    "budget": "how a step's rollouts are shared out among its prompts.",
    "sampler": "which prompts a step draws.",
    "silent_groups": "whether silent groups count in the denominator of the loss.",
    "logger": "where metrics go, besides the run's own files.",
}
#: Recipe folder -> title of its page.
RECIPES = {
    "": "Recipes",
    "gsd": "Recipes of GSD",
    "hadw": "Recipes of HA-DW",
    "dagrpo": "Recipes of DaGRPO",
    "gvpo": "Recipes of GVPO",
}


def commands_page() -> str:
    """Every command of ``verl-gsd`` with its arguments and options, by the panels of ``verl-gsd --help``."""
    root = typer.main.get_command(app)
    context = root.context_class(root, info_name="verl-gsd")
    panels: dict[str, list[str]] = {}
    for panel, section in _sections_of_commands(root, context):
        panels.setdefault(panel, []).append(section)
    lines = [
        "# Commands",
        "",
        "This page is made from the command line itself. `verl-gsd COMMAND --help` shows the same.",
    ]
    for panel, sections in panels.items():
        lines += ["", f"## {panel}", "", *sections]
    return "\n".join(lines) + "\n"


def _sections_of_commands(group: Any, context: Any, panel: str = "Commands") -> Iterator[tuple[str, str]]:
    """(panel, Markdown) of each command in a group and its subgroups. Hidden commands are left out."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = command.context_class(command, info_name=name, parent=context)
        stated = getattr(command, "rich_help_panel", None)
        its_panel = stated if isinstance(stated, str) else panel
        is_group = hasattr(command, "list_commands")
        if not is_group or command.invoke_without_command:
            yield its_panel, _command(command, inner)
        if is_group:
            yield from _sections_of_commands(command, inner, its_panel)


def _command(command: Any, context: Any) -> str:
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    lines = [f"### {context.command_path}", "", *_prose(command.help or ""), "", "```text", usage, "```"]
    records = [(one.param_type_name, one.get_help_record(context)) for one in command.get_params(context)]
    for kind in ("argument", "option"):
        rows = [record for its_kind, record in records if its_kind == kind and record and "--help" not in record[0]]
        if rows:
            cells = [[_code(names.partition(" <")[0]), _escaped(text)] for names, text in rows]
            lines += ["", *_table([kind, "what it is"], cells)]
    return "\n".join([*lines, "", *_prose(command.epilog or ""), ""])


def _prose(text: str) -> Iterator[str]:
    """Help text as Markdown. A paragraph with a command line is code, except its lines that end in ``:``."""
    lines: list[tuple[bool, str]] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        stated = [line.strip() for line in paragraph.splitlines() if line.strip() not in ("", "\b")]
        if any(line.startswith("verl-gsd ") for line in stated):
            lines += [(not line.endswith(":"), line) for line in stated]
        elif stated:
            lines.append((False, " ".join(stated)))
    for is_code, block in itertools.groupby(lines, key=lambda line: line[0]):
        texts = [line for _, line in block]
        yield from (
            ("```bash", *texts, "```", "") if is_code else (part for one in texts for part in (_escaped(one), ""))
        )


def settings_page() -> str:
    """The keys of ``algorithm.gsd``: allowed values, default and meaning, from the settings models."""
    lines = [
        "# Settings",
        "",
        "verl-gsd adds the section `algorithm.gsd` to verl's config. This page is made from the models that check it.",
        "An unknown key or a wrong value is rejected before Ray starts, with what to set instead.",
        "",
        "An extension takes part in a run if the config has its section. [Choices](choices.md) shows the files that",
        "add these sections, with the other keys that they set.",
        "",
        "## algorithm.gsd",
        "",
        "Every `algo=` sets `alpha`, the exponent of sigma: 1 is GRPO, 0 is Dr. GRPO. The file of the others:",
        "",
        *_file("algo", "_base"),
        *_section("limits", LimitSettings),
    ]
    for declaration in _our_declarations():
        lines += _section(declaration.name, extension.load(declaration.settings))
    return "\n".join(lines) + "\n"


def _section(name: str, model: type[SectionSettings]) -> Iterator[str]:
    """The heading, first sentence and table of one section's keys."""
    about, words, in_files = _attributes(model), _words_with(name), _values_in_files(name)
    yield from ("", f"## algorithm.gsd.{name}", "", _escaped((model.__doc__ or "").partition("\n")[0]), "")
    if words:
        yield from (f"Words that add it to a run: {', '.join(f'`{word}`' for word in words)}.", "")
    rows = []
    for key, field in model.model_fields.items():
        default = in_files.get(key, None if field.is_required() else field.get_default(call_default_factory=False))
        kind = (allowed_values(field) or "see its meaning").replace(", or to null", " or null")
        rows.append([_code(key), _escaped(kind), _code(_yaml(default)), _escaped(_in_yaml(about.get(key, "")))])
    yield from _table(["key", "value", "default", "meaning"], rows)


def _attributes(model: type) -> dict[str, str]:
    """Key -> its text under ``Attributes:`` in a docstring. Two keys can share an entry."""
    _, _, listed = (inspect.getdoc(model) or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", "\n" + listed.partition("\n\n")[0]):
        names, _, text = " ".join(entry.split()).partition(": ")
        texts |= dict.fromkeys(names.split(", "), text)
    return texts


def _words_with(name: str) -> list[str]:
    """The words of a command line that add the section ``algorithm.gsd.<name>``."""
    return [f"{group}={choice}" for group, choice in _choices_with(name)]


def _values_in_files(name: str) -> Mapping[str, Any]:
    """Key -> value of a section in the first file that has it. A run has these values where its words set no others."""
    for group, choice in _choices_with(name):
        return value_at(_gsd_sections()[group, choice], name)
    return {}


def _choices_with(name: str) -> list[tuple[str, str]]:
    """(group, choice) of the files with the section ``algorithm.gsd.<name>``."""
    return [where for where, gsd in _gsd_sections().items() if value_at(gsd, name) is not None]


@functools.cache
def _gsd_sections() -> dict[tuple[str, str], Mapping[str, Any]]:
    """(group, choice) -> the section ``algorithm.gsd`` of the file, with its interpolations unresolved."""
    sections = {}
    for group in ("algo", "budget", "sampler", "silent_groups"):
        for choice in groups.choices(group):
            node: Any = OmegaConf.to_container(groups.load_with_defaults(group, choice), resolve=False)
            sections[group, choice] = node.get("algorithm", {}).get("gsd") or {}
    return sections


def choices_page() -> str:
    """The files behind ``algo=``, ``hardware=`` and the other groups."""
    lines = [
        "# Choices",
        "",
        "A word such as `algo=grpo` merges one YAML file into verl's config. This page shows every file, with its",
        "comments. A file whose name begins with `_` is a part that others share.",
        "",
        "Keys on the command line override a file. `verl-gsd train ... --dry-run` prints the resulting config.",
    ]
    for group, about in GROUPS.items():
        lines += ["", f"## {group}=", "", f"`{group}=` chooses {about}"]
        for path in sorted((ROOT / "verl_gsd" / "config" / group).glob("*.yaml")):
            title = path.stem if path.stem.startswith("_") else f"{group}={path.stem}"
            lines += ["", f"### {title}", "", *_file(group, path.stem)]
    return "\n".join(lines) + "\n"


def figures_page() -> str:
    """What each extension adds to records, reports and histograms."""
    lines = [
        "# Columns and charts of algorithms",
        "",
        "Every extension declares the columns that it adds to the [records](../records.md), the figures that a report",
        "computes from them, and the metrics in its charts. This page is made from these declarations.",
        "[Metrics](../metrics.md) says what the metrics mean.",
    ]
    for declaration in _our_declarations():
        parts = [*_columns(declaration), *_charts(declaration), *_histograms(declaration)]
        if parts:
            lines += ["", f"## algorithm.gsd.{declaration.name}", *parts]
    return "\n".join(lines) + "\n"


def _columns(declaration: Declaration) -> Iterator[str]:
    if declaration.record_columns:
        rows = [[_code(one.name), one.type, _escaped(one.about)] for one in declaration.record_columns]
        yield from ("", "### Record columns", "", *_table(["column", "type", "meaning"], rows))
    if declaration.step_figures:
        rows = [
            [_code(one.name), _code(one.column), _code(one.over) or "groups", "yes" if one.taught else ""]
            for one in declaration.step_figures
        ]
        titles = ["figure per step", "sum of", "divided by", "only groups that taught"]
        yield from ("", "### Figures per step", "", *_table(titles, rows))


def _charts(declaration: Declaration) -> Iterator[str]:
    if declaration.report is not None:
        rows = [
            [_escaped(chart.title), _code(name), _escaped(label), _escaped(chart.unit)]
            for chart in declaration.report.charts
            for label, name in chart.lines.items()
        ]
        yield from ("", f"### Charts: {_escaped(declaration.report.title)}", "", _escaped(declaration.report.text), "")
        yield from _table(["chart", "metric or figure", "line", "unit"], rows)


def _histograms(declaration: Declaration) -> Iterator[str]:
    if declaration.histograms:
        rows = [[_code(name), _code(column)] for name, column in declaration.histograms.items()]
        yield from ("", "### Histograms", "", *_table(["histogram", "record column"], rows))


def recipe_page(folder: str) -> str:
    """The README of a folder of recipes, under the title of its page. Pages that it names become links."""
    text = (ROOT / "recipes" / folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\A# .*", f"# {RECIPES[folder]}", text)
    text = re.sub(r"`docs/([\w-]+\.md)`", r"[`\1`](../\1)", text)
    text = text.replace("`recipes/README.md`", "[Recipes](index.md)")
    folders = "|".join(filter(None, RECIPES))
    return re.sub(rf"`recipes/({folders})`", r"[`recipes/\1`](\1.md)", text)


def pages() -> dict[str, Callable[[], str]]:
    """Path below ``docs/`` -> what makes the page."""
    made: dict[str, Callable[[], str]] = {
        "reference/commands.md": commands_page,
        "reference/settings.md": settings_page,
        "reference/choices.md": choices_page,
        "reference/figures.md": figures_page,
    }
    return made | {f"recipes/{name or 'index'}.md": functools.partial(recipe_page, name) for name in RECIPES}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages. mkdocs calls this after it has listed ``docs/``."""
    for path, make in pages().items():
        files.append(File.generated(config, path, content=make()))
    return files


def _our_declarations() -> list[Declaration]:
    return [declaration for declaration in extension.declarations() if extension.is_ours(declaration)]


def _file(group: str, name: str) -> Iterator[str]:
    """A YAML file as a code block."""
    text = (ROOT / "verl_gsd" / "config" / group / f"{name}.yaml").read_text(encoding="utf-8")
    yield from ("```yaml", text.rstrip(), "```")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _yaml(value: Any) -> str:
    """A default as a command line has it: scalars in YAML, lists in brackets."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_yaml, value))}]"
    return as_yaml(value)


def _in_yaml(text: str) -> str:
    """A docstring's constants as a config has them."""
    return re.sub(r"\b(None|True|False)\b", lambda found: as_yaml(ast.literal_eval(found[0])), text)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line. Code between backticks stays code."""
    parts = re.split(r"(``.+?``|`.+?`)", " ".join(text.split()))
    return "".join(
        f"`{part.strip('`')}`" if part.startswith("`") else re.sub(r"([\\*_|<\[\]])", r"\\\1", part) for part in parts
    )
