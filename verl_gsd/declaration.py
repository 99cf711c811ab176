"""What an extension declares: everything that the package must know of it before a run, and without running it.

``extension.Declaration`` collects these. Checks, records, reports, the audit, histograms, the command line and the lab
iterate over the declarations of all registered extensions, so that no file of theirs names an algorithm. Importing this
module, and a module that only declares, needs neither torch nor verl.

Several fields name code as ``"module:name"``. The package imports that code when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from verl_gsd.extension import Extension

ColumnType = Literal["bool", "int32", "int64", "float64", "string"]


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

    It is the sum of ``column`` over the sum of ``over``, over the groups that have both, or the mean of ``column``
    where ``over`` is empty.

    Attributes:
        name: charts and findings refer to it by this name, as to a metric.
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
        name: part of the PNG's file name.
        lines: label -> name of a metric or of a figure per step. At most three.
        unit: title of the vertical axis, with the unit.
        share: whether the values are shares in [0, 1], shown in percent.
        from_zero: whether the vertical axis includes 0.
        needs: a metric or figure without which a run is left out of this chart. Empty: any of the lines is enough.
        hide_zeros: leave the chart out if all values are 0.
    """

    name: str
    title: str
    lines: Mapping[str, str]
    unit: str
    share: bool = False
    from_zero: bool = True
    needs: str = ""
    hide_zeros: bool = False


@dataclass(frozen=True)
class ReportSection:
    """The extension's section of a report. It is left out where no run has a chart of it.

    Attributes:
        needs: a metric or figure without which a run is left out of all charts.
    """

    name: str
    title: str
    text: str
    charts: tuple[ReportChart, ...]
    needs: str = ""


@dataclass(frozen=True)
class Conflict:
    """A setting that the extension does not work with. Declared on one side; the checks and docs of both sides read it.

    Attributes:
        setting: when the conflict holds, as ``key`` (the key has a value that is not null, for example
            ``algorithm.gsd.NAME``), ``key=value`` or ``key!=value``, with a YAML value. Several alternatives of one
            key's values are separated by ``|``.
        reason: why, as a part of a sentence.
        fix: what to set instead, as whole sentences.
        when: where it applies: a condition on the extension's own config, in the same form as ``setting``. Empty:
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
        needs_groups: only our trainer modes, which see whole groups, can run it.
        weighs: it changes or uses the advantages of the estimator ``gsd``. It is rejected under any other estimator.
        reads_accuracy: it reads ``acc``, the verifier's verdict. It is rejected where rewards come without one.
        saves: it has ``state_dict`` and ``load_state_dict``, and checkpoints keep what they return.
        worker: its ``WorkerExtension``, as ``"module:Class"``.
        loss: the module that registers its policy loss. Under our worker the loss finds its micro-batch's columns in
            ``trainer.loss_context.loss_context()``.
        conflicts: settings that it does not work with.
        check: a function (config, line) -> problems, as ``"module:function"``. It takes the resolved config and yields
            one sentence per problem with other keys beside the section. It is called where the section is absent, too.
        check_files: the same for files of the machine that runs the training.
        check_services: the same for servers, whose answer may take seconds. It is called last, before Ray starts.
        longest_wait: the key of its section that says how many seconds a group may wait for the extension.
        unused_keys: a tuple of ``run.checks.unused_keys.UnusedKey``, as ``"module:NAME"``: keys without any effect.
        audit: a function config -> ``audit.Effect``, as ``"module:function"``: what it does to advantages, in words.
        record_columns: what ``Extension.record`` returns.
        step_figures: figures per step for charts and findings, from record columns.
        report: its section of a report.
        findings: a tuple of ``report.findings.finding.Finder``, as ``"module:NAME"``: what can go wrong in a run.
        histograms: name -> record column whose distribution wandb and TensorBoard show at every step.
        lab: a function () -> name -> ``bernoulli.Algorithm``, as ``"module:function"``: rows of ``verl-gsd lab``. A
            ``bernoulli.SameAlgorithm`` says which row to use for a name whose run would repeat that row.
        commands: name -> a function that typer makes a command of, as ``"module:function"``. ``verl-gsd`` has these
            commands, too; ``judge NAME`` belongs to the group ``judge``. Help imports the module, so that it imports
            what takes time within the function.
        configs: a package whose YAML files ``algo/NAME.yaml`` become choices of ``algo=``.
    """

    name: str
    runtime: str | type[Extension]
    order: int = 100
    settings: str | type | None = None
    needs_groups: bool = True
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
    histograms: Mapping[str, str] = field(default_factory=dict)
    lab: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    configs: str | None = None

    def section(self, gsd: Mapping[str, object]) -> object:
        """Its section of ``algorithm.gsd``; None where the extension takes no part."""
        found: object = gsd
        for key in self.name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
