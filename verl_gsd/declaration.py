"""What an extension declares: everything that the package must know of it before a run, and without running it.

``extension.Declaration`` collects these. Checks, records, reports, the audit, histograms, the command line and the lab
iterate over the declarations of all registered extensions, so that no file of theirs names an algorithm. Importing this
module, and a module that only declares, needs neither torch nor verl.

Several fields name code as ``"module:name"``. The package imports that code when it is first used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from verl_gsd.dotted_keys import value_at

if TYPE_CHECKING:
    from verl_gsd.extension import Extension

ColumnType = Literal["bool", "int32", "int64", "float64", "string"]
#: How a chart shows its values: as they are, shares in [0, 1] in percent, or large numbers with a prefix (12k).
ValueFormat = Literal["number", "share", "large"]
#: Findings of the report that an extension can remedy: many groups are unanimous; most of these are all wrong.
Problem = Literal["silent", "all_wrong"]

#: A conflict's setting that stands for every other extension that weighs advantages.
WEIGHS = "weighs"


@dataclass(frozen=True)
class RecordColumn:
    """A column that ``Extension.record`` fills: one value per group. It is null where the extension gives none.

    Attributes:
        about: what the value is, in one sentence.

    Raises:
        ValueError: the type is unknown.
    """

    name: str
    type: ColumnType = "float64"
    about: str = ""

    def __post_init__(self) -> None:
        if self.type not in get_args(ColumnType):
            raise ValueError(f"record column {self.name}: unknown type {self.type!r}. Use {_listed(ColumnType)}.")


@dataclass(frozen=True)
class StepFigure:
    """A figure per step that the report computes from the records of the step's groups.

    It is the sum of ``column`` divided by the sum of ``over``, of the groups that have both. If ``over`` is empty, it
    is the mean of ``column``, of the groups that have it.

    Attributes:
        name: charts and findings refer to it by this name, as to a metric.
        column: a record column that the extension declares or that all runs have. It holds no strings.
        over: such a column, or empty.
        taught: only groups that were trained on and whose rewards differ.
    """

    name: str
    column: str
    over: str = ""
    taught: bool = False


@dataclass(frozen=True)
class ReportChart:
    """A chart over steps in the extension's section of a report.

    Attributes:
        name: part of the PNG's file name: letters, digits and hyphens.
        lines: label -> name of a metric or of a figure per step. One to three.
        unit: title of the vertical axis, with the unit.
        values: how values are shown.
        from_zero: whether the vertical axis includes 0.
        needs: a metric or figure without which a run is left out of this chart. Empty: any of the lines is enough.
        hide_zeros: leave the chart out if all values are 0.

    Raises:
        ValueError: the name, the number of lines or ``values`` is wrong.
    """

    name: str
    title: str
    lines: Mapping[str, str]
    unit: str
    values: ValueFormat = "number"
    from_zero: bool = True
    needs: str = ""
    hide_zeros: bool = False

    def __post_init__(self) -> None:
        _check_part_name("chart", self.name)
        if not 1 <= len(self.lines) <= 3:
            raise ValueError(f"chart {self.name}: {len(self.lines)} lines. Use one to three.")
        if self.values not in get_args(ValueFormat):
            raise ValueError(f"chart {self.name}: unknown values={self.values!r}. Use {_listed(ValueFormat)}.")


@dataclass(frozen=True)
class ReportSection:
    """The extension's section of a report. It is left out where no run has a chart of it.

    Attributes:
        name: part of its charts' file names: letters, digits and hyphens. No other section has it.
        text: a paragraph before the charts.
        needs: a metric or figure without which a run is left out of all charts. The section is left out if the values
            of all runs are 0.

    Raises:
        ValueError: the name is wrong.
    """

    name: str
    title: str
    text: str
    charts: tuple[ReportChart, ...]
    needs: str = ""

    def __post_init__(self) -> None:
        _check_part_name("report section", self.name)


@dataclass(frozen=True)
class Conflict:
    """A setting that the extension does not work with. Declared on one side; the checks and docs of both sides read it.

    The checks report ``KEY=VALUE: algorithm.gsd.NAME does not work with it: REASON. FIX``.

    Attributes:
        setting: when the conflict holds:

            - ``key``: the key has a value that is not null, for example ``algorithm.gsd.mine``;
            - ``key=value``: it has this value, in YAML. An absent key is null;
            - ``key!=value``: it has a value that is neither this one nor null;
            - ``weighs`` (``WEIGHS``): another extension takes part whose declaration has ``weighs``.

            ``|`` separates several values.
        reason: why, as a part of a sentence without a full stop.
        fix: what to set instead, as whole sentences.
        when: a further condition, in the same form as ``setting``, usually on the extension's own section. Empty:
            wherever the extension takes part.
    """

    setting: str
    reason: str
    fix: str
    when: str = ""


@dataclass(frozen=True)
class Declaration:
    """What a run knows of an extension before it builds it.

    Attributes:
        name: of the config section ``algorithm.gsd.<name>``. A dot leads into a section: ``mine.part`` is a part of
            ``mine`` that takes part where that has a section ``part``.
        runtime: the ``Extension``: its class, or ``"module:Class"``. It is called with its settings and the run's
            ``Services``. The services are None while a config is checked and under one of verl's own trainers.
        order: extensions take part in ascending order; equal ones by name. Ours have 10 to 40.
        settings: the section's pydantic model, a ``settings.SectionSettings``: its class, or ``"module:Class"``. It
            rejects unknown keys and wrong values before Ray starts.
        needs_groups: only our trainer modes, which see whole groups, can run it. It is rejected under verl's own modes.
        counts_groups: its ``Extension.place`` fills a mini-batch with a number of groups, whatever their sizes.
        weighs: it changes or uses the advantages of the estimator ``gsd``. It is rejected under any other estimator.
        reads_accuracy: it reads ``acc``, the verifier's verdict. It is rejected where rewards come without one.
        saves: it has ``state_dict`` and ``load_state_dict``, and checkpoints keep what they return.
        worker: its ``WorkerExtension``, as ``"module:Class"``.
        loss: the module that registers its policy loss. Under our worker the loss finds its micro-batch's columns in
            ``trainer.loss_context.loss_context()``.
        conflicts: settings that it does not work with.
        check: a function (config, line) -> problems, as ``"module:function"``. It takes the resolved config and yields
            one sentence per problem with other keys beside the section. It is called where the section is absent, too,
            but not where the section, or a part of it, is wrong by itself.
        check_files: the same for files of the machine that runs the training. It is called where the extension takes
            part.
        check_services: the same for servers, whose answer may take seconds. It is called where the extension takes
            part, last, before Ray starts.
        longest_wait: the key of its section that says how many seconds a group may wait for the extension.
        unused_keys: a tuple of ``run.checks.unused_keys.UnusedKey``, as ``"module:NAME"``: keys that have no effect
            while a condition holds, whether or not the extension takes part.
        audit: a function config -> ``audit.Effect`` or None, as ``"module:function"``: what it does to advantages, in
            words. It is called where the extension takes part.
        record_columns: what ``Extension.record`` returns.
        step_figures: figures per step for charts and findings, from record columns.
        report: its section of a report.
        findings: a tuple of ``report.findings.finding.Finder``, as ``"module:NAME"``: what can go wrong in a run.
        remedies: a finding of the package -> what to set, which uses this extension. A report shows it if the finding
            is made and the extension takes no part in the run.
        report_order: sections, findings and remedies of extensions are in this order in a report; equal ones in the
            extensions' order.
        histograms: name -> record column whose distribution wandb and TensorBoard show at every step. The column is
            one that the extension declares or that all runs have, and holds no strings.
        lab: a function () -> name -> ``bernoulli.Algorithm``, as ``"module:function"``: rows of ``verl-gsd lab``. A
            ``bernoulli.SameAlgorithm`` says which row to use for a name whose run would repeat that row.
        commands: name -> a function that typer turns into a command, as ``"module:function"``. ``verl-gsd`` then has
            this command; ``judge NAME`` belongs to the group ``judge``. Help imports the module, so import heavy
            packages inside the function.
        configs: a package whose YAML files ``algo/NAME.yaml`` become choices of ``algo=``.

    Raises:
        ValueError: it has a remedy for an unknown finding.
    """

    name: str
    runtime: str | type[Extension]
    order: int = 100
    settings: str | type | None = None
    needs_groups: bool = True
    counts_groups: bool = False
    weighs: bool = True
    reads_accuracy: bool = False
    saves: bool = False
    worker: str | None = None
    loss: str | None = None
    conflicts: tuple[Conflict, ...] = ()
    check: str | None = None
    check_files: str | None = None
    check_services: str | None = None
    longest_wait: str | None = None
    unused_keys: str | None = None
    audit: str | None = None
    record_columns: tuple[RecordColumn, ...] = ()
    step_figures: tuple[StepFigure, ...] = ()
    report: ReportSection | None = None
    findings: str | None = None
    remedies: Mapping[Problem, str] = field(default_factory=dict)
    report_order: int = 100
    histograms: Mapping[str, str] = field(default_factory=dict)
    lab: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    configs: str | None = None

    def __post_init__(self) -> None:
        for problem in self.remedies:
            if problem not in get_args(Problem):
                raise ValueError(f"extension {self.name!r}: no finding {problem!r} to remedy. Use {_listed(Problem)}.")

    def section(self, gsd: Mapping[str, object]) -> object:
        """Its section of ``algorithm.gsd``; None where the extension takes no part."""
        return value_at(gsd, self.name)


def _check_part_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise ValueError(f"{kind} {name!r}: the name is part of a file name. Use letters, digits and hyphens.")


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
