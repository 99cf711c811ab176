"""An extension of another package: its columns, figures, charts, findings, remedies and histograms."""

import re
import sys
import types
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from report_runs import config, everything, group, metrics, records
from typer.testing import CliRunner

from verl_gsd import extension
from verl_gsd.base_names import BASE_NAMES
from verl_gsd.cli.main import app
from verl_gsd.extension import (
    Conflict,
    Declaration,
    Extension,
    RecordColumn,
    ReportChart,
    ReportSection,
    StepFigure,
    declarations,
    register,
)
from verl_gsd.records import LeftGroup, read_records, schema, step_records
from verl_gsd.report.build import build_sections, read_runs
from verl_gsd.report.findings import Finding, collect_findings
from verl_gsd.report.findings.finding import recent_mean
from verl_gsd.report.reading import read_run
from verl_gsd.report.steps import step_table
from verl_gsd.trainer.histograms import values_shown

MIXED, WRONG = [0, 1, 1, 1], [0, 0, 0, 0]

COLUMNS = (
    RecordColumn("tally_seen", "int32", "Groups seen before this one."),
    RecordColumn("tally_is_new", "bool", "Whether the prompt is new."),
    RecordColumn("tally_label", "string", "The prompt's label."),
)
FIGURES = (
    StepFigure("tally/seen", "tally_seen"),
    StepFigure("tally/seen_per_response", "tally_seen", over="size", taught=True),
    StepFigure("tally/new", "tally_is_new"),
)
SECTION = ReportSection(
    "tally",
    "Tally of <groups>",
    "What was seen.",
    (
        ReportChart("seen", "Seen", {"seen": "tally/seen", "logged": "tally/logged"}, "groups", values="large"),
        ReportChart("new", "New prompts", {"new": "tally/new"}, "share", values="share"),
        ReportChart("flat", "Always 0", {"flat": "tally/flat"}, "groups", hide_zeros=True),
        ReportChart("mixed", "Mixed", {"mixed": "mixed"}, "share", needs="tally/flat_in_others"),
    ),
    needs="tally/seen",
)


def many_seen(table, config):
    """Many groups were seen."""
    if recent_mean(table, "tally/seen") > 2:
        yield Finding("Tally has seen many groups", "That is enough.", ("algorithm.gsd.tally.label=other  # why",))


def raising(table, config):
    """A finder that raises after one finding. That finding must not be shown, because it could mislead."""
    yield Finding("half", "")
    raise RuntimeError("no tally today")


def wordy(table, config):
    """A finder that does not yield findings."""
    yield "something is wrong"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Undo what a test registers."""
    declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", [])


@pytest.fixture
def tally(monkeypatch):
    """Register the extension with the given finders."""

    def tally(*finders, **declared):
        module = types.ModuleType("tally_findings")
        module.FINDERS = finders
        monkeypatch.setitem(sys.modules, "tally_findings", module)
        declared = {"record_columns": COLUMNS, "step_figures": FIGURES, "report": SECTION} | declared
        register(Declaration("tally", Extension, findings="tally_findings:FINDERS", **declared))

    return tally


def write_run(run):
    """Two steps: in each one mixed group that was trained on, and one filtered."""
    for step in (1, 2):
        values = {"tally_seen": 4 * step, "tally_is_new": True, "tally_label": "a"}
        others = values | {"tally_seen": 0, "tally_is_new": False}
        records(run, step, (MIXED, "trained", values), (WRONG, "filtered", others))
    metrics(run, [(step, {"tally/logged": 3.0, "tally/flat": 0.0}) for step in (1, 2)])
    return run


# Records


def test_a_declared_column_has_its_type_and_is_null_where_nothing_was_returned(tally, tmp_path):
    tally()
    values = {"tally_seen": 3.0, "tally_is_new": np.bool_(True), "tally_label": "a"}
    records(tmp_path, 1, (MIXED, "trained", values), (MIXED, "trained"))
    found = read_records(tmp_path)
    assert found.schema.equals(schema()) and found.schema.names[-3:] == [column.name for column in COLUMNS]
    assert [found.schema.field(column.name).type for column in COLUMNS] == [pa.int32(), pa.bool_(), pa.string()]
    assert [found[column.name].to_pylist() for column in COLUMNS] == [[3, None], [True, None], ["a", None]]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("tally_seen", 1.5, r"\bint32: .*1\.5"),
        ("tally_seen", float("nan"), "int32"),
        ("tally_seen", "many", "int32.*many"),
        ("tally_seen", True, "int32"),
        ("tally_seen", 2**31, "int32.*2147483648"),
        ("tally_is_new", 1, "bool"),
        ("tally_label", 1, "string"),
    ],
)
def test_a_value_of_another_type_names_extension_and_column(tally, name, value, what):
    tally()
    with pytest.raises(ValueError, match=rf"'tally': record column {name} .*{what}"):
        step_records([LeftGroup(group(MIXED), "trained", {name: value})], step=1, attempt=1, alpha=1.0)


def test_an_undeclared_column_takes_numbers():
    with pytest.raises(ValueError, match=r"record column tally_label .*'?a'?.* Declare"):
        step_records([LeftGroup(group(MIXED), "trained", {"tally_label": "a"})], step=1, attempt=1, alpha=1.0)


@pytest.mark.parametrize("name", ["size", "silent_predicted"])
def test_a_returned_column_that_every_run_has_is_an_error_and_does_not_vanish(name):
    with pytest.raises(ValueError, match=rf"record column {name}: .*Rename"):
        step_records([LeftGroup(group(MIXED), "trained", {name: 1.0})], step=1, attempt=1, alpha=1.0)


def test_records_from_before_a_column_was_declared_have_its_type(tally, tmp_path):
    records(tmp_path, 1, (MIXED, "trained"))
    records(tmp_path, 2, (MIXED, "trained", {"tally_seen": 1.0}))
    records(tmp_path, 3, (MIXED, "trained", {"tally_seen": 2.5}))
    assert read_records(tmp_path)["tally_seen"].type == pa.float64()
    tally()
    records(tmp_path, 4, (MIXED, "trained", {"tally_seen": 3}))
    with pytest.raises(ValueError, match=r"step_000003\.parquet: column tally_seen is double and not int32"):
        read_records(tmp_path)
    damaged = []
    found = read_records(tmp_path, on_damaged=damaged.append)
    assert found["tally_seen"].to_pylist() == [None, 1, 3] and found["tally_seen"].type == pa.int32()
    assert len(damaged) == 1


def test_a_run_is_read_without_the_package_that_wrote_it(tally, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(extension, "_DECLARED", dict(extension._DECLARED))
        tally()
        write_run(tmp_path)
    records(tmp_path, 3, (MIXED, "trained", {"tally_seen": 7.0}))
    found = read_run(tmp_path, "run").records
    assert found["tally_seen"].to_pylist() == [4, 0, 8, 0, 7] and found["tally_label"].to_pylist() == [*"aaaa", None]


# The report


def test_figures_per_step_are_those_that_are_declared(tally, tmp_path):
    tally()
    table = step_table(read_run(write_run(tmp_path), "run"))
    assert table["tally/seen"].tolist() == [2, 4]
    assert table["tally/seen_per_response"].tolist() == [1, 2], "of the group that was trained on"
    assert table["tally/new"].tolist() == [0.5, 0.5]


def test_a_figure_may_be_of_a_column_that_a_report_does_not_read_otherwise(tally, tmp_path):
    tally(step_figures=(StepFigure("tally/index", "index"),), report=None)
    assert step_table(read_run(write_run(tmp_path), "run"))["tally/index"].tolist() == [7, 7]


def test_a_page_and_pngs_have_its_charts_and_its_finding(tally, tmp_path):
    tally(many_seen)
    run = write_run(tmp_path / "run")
    words = ["report", str(run), "--png", str(tmp_path / "png")]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "png").glob("tally*")} == {"tally-seen.png", "tally-new.png"}
    page = (run / "report.html").read_text()
    assert "Tally has seen many groups" in page and "Tally of &lt;groups&gt;" in page and "<groups>" not in page
    section = build_sections(read_runs([run]))[-1]
    assert (section.name, section.text) == ("tally", ["What was seen."])
    seen, new = (panel.chart.to_dict() for panel in section.panels)
    assert {row["series"] for row in seen["data"]["values"]} == {"seen", "logged"}
    assert seen["encoding"]["y"]["axis"]["format"] == "~s" and new["encoding"]["y"]["axis"]["format"] == "~%"


def test_a_run_without_what_a_section_needs_is_left_out_of_it(tally, tmp_path):
    tally()
    other = tmp_path / "other"
    metrics(other, [(1, {"tally/logged": 1.0})])
    assert "tally" not in [section.name for section in build_sections(read_runs([other]))]
    section = build_sections(read_runs([write_run(tmp_path / "run"), other]))[-1]
    assert {row["run"] for panel in section.panels for row in panel.chart.to_dict()["data"]["values"]} == {"run"}


def test_our_own_sections_come_first_and_then_those_of_others_by_their_order(tally, tmp_path):
    tally()
    early = ReportSection("early", "Early", "", (ReportChart("seen", "Seen", {"seen": "tally/seen"}, "groups"),))
    register(Declaration("early", Extension, report=early, report_order=1))
    run = write_run(everything(tmp_path / "run", steps=2))
    names = [section.name for section in build_sections(read_runs([run]))]
    assert names.index("policy") + 1 == names.index("early") and names[-1] == "tally"


@pytest.mark.parametrize(
    ("finder", "expected"), [(raising, "RuntimeError: no tally today"), (wordy, "TypeError: .*Finding")]
)
def test_a_finder_that_fails_is_named_and_all_others_run(tally, tmp_path, finder, expected, caplog):
    tally(finder, many_seen)
    run = read_run(write_run(tmp_path), "run")
    failed, found = collect_findings(step_table(run), {})[-2:]
    assert "tally" in failed.title and finder.__name__ in failed.title
    assert found.title == "Tally has seen many groups"
    assert re.search(expected, failed.text)
    assert "Traceback" in caplog.text
    assert "tally" in [section.name for section in build_sections([run])]


def test_findings_that_cannot_be_imported_are_named(tally, tmp_path):
    register(Declaration("lost", Extension, findings="no_such_package.findings:FINDERS"))
    (failed,) = collect_findings({"step": np.zeros(0, np.int64)}, {})
    assert "lost" in failed.title and "no_such_package" in failed.text


def silent_run(run, **keys):
    for step in (1, 2, 3):
        records(run, step, (WRONG, "trained"), (WRONG, "trained"))
    config(run, **keys)
    return run


@pytest.mark.parametrize(
    ("keys", "is_shown"),
    [
        ({}, True),
        ({"algorithm__gsd__tally": None}, True),
        ({"algorithm__gsd__tallying": {"label": 1}}, True),
        ({"algorithm__gsd__tally": {"label": "a"}}, False),
        ({"algorithm__gsd__tally": {}}, False),
    ],
)
def test_a_remedy_is_shown_if_the_extension_takes_no_part(tmp_path, keys, is_shown):
    register(Declaration("tally", Extension, remedies={"all_wrong": "algo=tally  # counts them"}))
    run = read_run(silent_run(tmp_path, data__seed=1, **keys), "run")
    (finding,) = (of for of in collect_findings(step_table(run), run.config) if "silent" in of.title)
    assert ("algo=tally  # counts them" in finding.overrides) == is_shown


DYNAMIC_SAMPLING, REPLACE_FAILED = "algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups"


@pytest.mark.parametrize(
    ("condition", "section", "is_shown"),
    [
        ("=true", {"label": 1}, False),
        ("=false|true", {"label": 1}, False),
        ("", {"label": 1}, False),
        ("!=false", {"label": 1}, False),
        ("=true", {}, False),
        ("=true", None, True),
        ("=false", {"label": 1}, True),
        ("!=true", {"label": 1}, True),
        ("_not=true", {"label": 1}, True),
    ],
)
@pytest.mark.parametrize("key", [DYNAMIC_SAMPLING, REPLACE_FAILED])
def test_a_setting_that_an_extension_of_the_run_does_not_work_with_is_not_suggested(
    tmp_path, key, condition, section, is_shown
):
    conflict = Conflict(f"{key}{condition}", "it counts groups", "Set it to false.")
    register(Declaration("tally", Extension, conflicts=(conflict,)))
    for step in (1, 2, 3):
        records(tmp_path, step, (WRONG, "trained"), (group([]), "failed"))
    config(tmp_path, algorithm__gsd__tally=section)
    run = read_run(tmp_path, "run")
    findings = collect_findings(step_table(run), run.config)
    overrides = [override for finding in findings for override in finding.overrides]
    suggested = {
        DYNAMIC_SAMPLING: any(override.startswith(f"{DYNAMIC_SAMPLING}=true ") for override in overrides),
        REPLACE_FAILED: any(override.startswith(f"{REPLACE_FAILED}=true ") for override in overrides),
    }
    assert suggested == {DYNAMIC_SAMPLING: True, REPLACE_FAILED: True} | {key: is_shown}


# Histograms


def test_a_histogram_is_of_a_declared_column(tally):
    tally(histograms={"tally_seen": "tally_seen", "tally_is_new": "tally_is_new"})
    left = [
        LeftGroup(group(MIXED), "trained", {"tally_seen": 3, "tally_is_new": True}),
        LeftGroup(group(WRONG), "failed"),
    ]
    table = step_records(left, step=1, attempt=1, alpha=1.0)
    shown = values_shown(table, [entry.group for entry in left])
    assert (shown["tally_seen"].tolist(), shown["tally_is_new"].tolist()) == ([3.0], [1.0])
    assert shown["tally_seen"].dtype == shown["tally_is_new"].dtype == np.float64


# Names


def test_the_base_names_are_those_that_the_package_uses(tmp_path):
    run = everything(tmp_path / "run", steps=3)
    (tmp_path / "run" / "metrics" / "attempt_1.jsonl").write_text("")
    read = read_run(run, "run")
    declared = declarations()
    figures = {figure.name for of in declared for figure in of.step_figures}
    assert set(step_table(read)) - figures == set(BASE_NAMES["figure per step"])
    sections = {of.report.name for of in declared if of.report is not None}
    other = replace(read, name="other", config={"data.seed": 1})
    shown = {section.name for section in build_sections([read, other])} - sections
    assert shown == set(BASE_NAMES["report section"]) - {"waiting", "error"}
    scored = LeftGroup(replace(group(MIXED), scores=np.ones(4)), "trained")
    histograms = values_shown(step_records([scored], step=1, attempt=1, alpha=1.0), [scored.group])
    assert set(histograms) == set(BASE_NAMES["histogram"])
    assert [field.name for field in schema()][: len(BASE_NAMES["record column"])] == list(BASE_NAMES["record column"])
