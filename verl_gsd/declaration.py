"""The declaration of an extension: everything that the package must know about it without running it.

Checks, records, reports, the audit, histograms, the command line and the lab iterate over the declarations of all
registered extensions. Their code therefore names no algorithm. This module needs neither torch nor verl, and neither
does a module that only registers a declaration.

Several fields refer to code as ``"module:name"``. The package imports this code when it is first used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from verl_gsd.dotted_keys import value_at

if TYPE_CHECKING:
    from verl_gsd.extension import Extension

ColumnType = Literal["bool", "int32", "int64", "float64", "string", "binary"]
#: Format of a chart's values: plain numbers, shares in [0, 1] as percentages, or large numbers with a prefix (12k).
ValueFormat = Literal["number", "share", "large"]
#: Findings of a report for which an extension can suggest a remedy. ``silent``: many groups have equal rewards.
#: ``all_wrong``: most of these are all wrong. ``unstable``: the gradient norm spikes, or the loss oscillates.
#: ``partial_credit``: rewards differ by more than right and wrong, and the advantage divides by their deviation.
Problem = Literal["silent", "all_wrong", "unstable", "partial_credit"]

#: ``Conflict.setting`` for a conflict with every other extension that weighs advantages.
WEIGHS = "weighs"


@dataclass(frozen=True)
class RecordColumn:
    """A record column that ``Extension.record`` fills with one value per group. A missing value becomes null.

    Attributes:
        about: one sentence that describes the value.

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
    """A figure per step, which the report computes from the records of the step's groups.

    It is the sum of ``column`` divided by the sum of ``over``, for the groups that have both values. If ``over`` is
    empty, it is the mean of ``column`` for the groups that have a value.

    Attributes:
        name: charts and findings use it like the name of a metric.
        column: a numeric record column, which the extension declares or which all runs have.
        over: another such column, or empty.
        taught: use only groups that were trained on and are not silent.
    """

    name: str
    column: str
    over: str = ""
    taught: bool = False


@dataclass(frozen=True)
class ReportChart:
    """A chart over steps in the extension's section of a report.

    Attributes:
        name: part of the PNG's file name. It has only letters, digits and hyphens.
        lines: label -> name of a metric or of a figure per step. One to three lines.
        unit: title of the vertical axis, with the unit.
        values: format of the values.
        from_zero: whether the vertical axis includes 0.
        needs: a metric or figure that a run must have to appear in this chart. Empty: a run needs any of the lines.
        hide_zeros: omit the chart if all values are 0.

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
    """The extension's section of a report. It is omitted if no run appears in any of its charts.

    Attributes:
        name: part of the file names of its charts. It has only letters, digits and hyphens, and must be unique.
        text: a paragraph before the charts.
        needs: a metric or figure that a run must have to appear in the charts. If it is 0 in all runs, the section is
            omitted.

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
        names = [chart.name for chart in self.charts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"report section {self.name}: two charts are called {name}. Rename one of them.")


@dataclass(frozen=True)
class Conflict:
    """A setting that the extension does not work with. For two extensions, only one of them declares the conflict.

    The checks report ``KEY=VALUE: algorithm.gsd.NAME does not work with it: REASON. FIX``.

    Attributes:
        setting: the condition of the conflict:

            - ``key``: the key has a value that is not null, for example ``algorithm.gsd.mine``;
            - ``key=value``: the key has this value, in YAML. A missing key is null;
            - ``key!=value``: the key has a value that is neither this one nor null;
            - ``weighs`` (``WEIGHS``): the run has another extension whose declaration has ``weighs``.

            ``|`` separates several values.
        reason: why, as a part of a sentence without a full stop.
        fix: what to set instead, as whole sentences.
        when: a second condition in the form of ``setting``, usually on the extension's own section. Empty: the conflict
            needs no second condition.
    """

    setting: str
    reason: str
    fix: str
    when: str = ""

    def __post_init__(self) -> None:
        for condition in (self.setting, self.when):
            if condition and not re.fullmatch(r"[\w.]+(!?=[^=\[\]{}]*)?", condition):
                raise ValueError(f"conflict {condition!r}: not a condition. Use key, key=value or key!=value.")


@dataclass(frozen=True)
class Remedy:
    """A setting that helps against a finding, and one that takes its place where the data does not allow it.

    Attributes:
        override: the setting, for the command line, followed by a comment.
        column: the column of the training data that it needs.
        otherwise: the setting, in the same form, where the data has no such column or cannot be read.
        beside: extension -> the setting, in the same form, for a run that has this extension.
    """

    override: str
    column: str
    otherwise: str
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """The description of an extension, which the package reads before it builds the extension.

    Attributes:
        name: name of the config section ``algorithm.gsd.<name>``. A dot denotes a nested section: ``mine.part`` is a
            part of ``mine``, which takes part if the section ``mine`` has a section ``part``.
        runtime: the subclass of ``Extension``, or ``"module:Class"``. The run calls it with the settings and the run's
            ``Services``. The services are None if a config is only checked, and under one of verl's own trainers.
        order: extensions take part in ascending order. Extensions with the same order are sorted by name. Ours have 10
            to 40.
        settings: the pydantic model of the section, a subclass of ``settings.SectionSettings``, or ``"module:Class"``.
            It rejects unknown keys and wrong values before Ray starts.
        needs_groups: only our trainer modes, which see whole groups, can run the extension. The checks reject it under
            verl's own modes.
        counts_groups: ``Extension.place`` fills a mini-batch with a fixed number of groups, whatever their sizes.
        counts: names of metrics of ``Extension.place`` that are numbers of something. They are summed over the batches
            of a step, of which verl takes the mean otherwise.
        weighs: the extension changes or uses the advantages of the estimator ``gsd``. The checks reject it under any
            other estimator. A part can weigh although the extension that contains it does not.
        reads_accuracy: the extension reads ``acc``, the verifier's verdict. The checks reject it if rewards come
            without a verdict.
        follows_responses: earlier responses decide which prompts a step visits, or how large their groups are. Some
            findings of a report cannot be made then.
        saves: the extension has ``state_dict`` and ``load_state_dict``, and checkpoints save its memory.
        worker: the ``WorkerExtension``, as ``"module:Class"``.
        loss: the module that registers the policy loss. Under our worker, ``trainer.loss_context.loss_context()``
            gives the loss the columns of its micro-batch.
        conflicts: settings that the extension does not work with.
        contradictions: settings that leave the extension without much effect. They are not rejected. A report does not
            suggest them, and it does not suggest the extension in a run that has them. The audit can warn of them.
        check: a function (config, line) -> problems, as ``"module:function"``. It takes the resolved config, and yields
            one sentence per problem with keys outside the section. It is also called if the section is missing, but not
            if the section or a part of it is wrong by itself.
        check_files: the same for files of the machine that trains. It is called only if the extension takes part.
        check_services: the same for servers, which may take seconds to answer. It is called only if the extension takes
            part, as the last check before Ray starts.
        longest_wait: the key of the section with the maximum number of seconds that a group waits for the extension.
        unused_keys: a tuple of ``unused_keys.UnusedKey``, as ``"module:NAME"``: keys that have no effect
            under a condition. They are checked even if the extension does not take part. A report advises none of them.
        audit: a function config -> ``audit.Effect`` or None, as ``"module:function"``. It describes what the extension
            does to advantages. It is called only if the extension takes part.
        record_columns: the columns that ``Extension.record`` fills.
        step_figures: figures per step for charts and findings, computed from record columns.
        report: the extension's section of a report.
        findings: a tuple of ``report.findings.finding.Finder``, as ``"module:NAME"``. They detect what went wrong in a
            run.
        remedies: finding of the package -> a setting that uses this extension, or a ``Remedy`` if that depends on the
            data. A report suggests the setting if it has the finding and the extension does not take part in the run.
        report_order: a report has the sections, findings and remedies of extensions in this order. Those with the same
            order are sorted like the extensions.
        histograms: name -> record column. wandb and TensorBoard show the distribution of its values at every step. The
            column is numeric, and is declared by the extension or common to all runs.
        lab: a function () -> name -> ``bernoulli.Algorithm``, as ``"module:function"``. These are rows of
            ``verl-gsd lab``. A ``bernoulli.SameAlgorithm`` refers a name to the row that its run would repeat.
        commands: name -> a function that typer turns into a command of ``verl-gsd``, as ``"module:function"``. A name
            ``judge NAME`` belongs to the group ``judge``. The docstring is the help, and may end with a section
            ``Examples:`` of one command per line. ``verl-gsd --help`` imports the module, so import heavy packages
            inside the function.
        configs: a package whose YAML files ``algo/NAME.yaml`` become choices of ``algo=``. ``verl-gsd algos`` shows the
            first sentence of the comment at the beginning of a file.
        about: one sentence that says what the extension does. ``verl-gsd algos`` shows it if no choice of ``algo=`` has
            the extension.
        needs: what a run needs for the extension besides prompts and a verifier, as a part of a sentence. ``verl-gsd
            algos`` shows it.

    Raises:
        ValueError: there is a remedy for an unknown finding.
    """

    name: str
    runtime: str | type[Extension]
    order: int = 100
    settings: str | type | None = None
    needs_groups: bool = True
    counts_groups: bool = False
    counts: tuple[str, ...] = ()
    weighs: bool = True
    reads_accuracy: bool = False
    follows_responses: bool = False
    saves: bool = False
    worker: str | None = None
    loss: str | None = None
    conflicts: tuple[Conflict, ...] = ()
    contradictions: tuple[Conflict, ...] = ()
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
    remedies: Mapping[Problem, str | Remedy] = field(default_factory=dict)
    report_order: int = 100
    histograms: Mapping[str, str] = field(default_factory=dict)
    lab: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    configs: str | None = None
    about: str = ""
    needs: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.order, int | float):
            raise ValueError(f"extension {self.name!r}: order={self.order!r} is not a number. Use a number.")
        for problem in self.remedies:
            if problem not in get_args(Problem):
                raise ValueError(
                    f"extension {self.name!r}: remedies has no finding {problem!r}. Use {_listed(Problem)}."
                )

    def section(self, gsd: Mapping[str, object]) -> object:
        """The extension's section of ``algorithm.gsd``; None if the extension does not take part."""
        return value_at(gsd, self.name)


def _check_part_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise ValueError(f"{kind} {name!r}: the name is part of a file name. Use letters, digits and hyphens.")


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
