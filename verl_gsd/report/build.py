"""Builds a report: the sections of its page, and the same charts as PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altair.utils.schemapi import debug_mode

from verl_gsd.charts import COLOURS, Section, write_png
from verl_gsd.report.reading import RunData, RunReader, unique_names
from verl_gsd.report.responses import Distrust, unknown_origin
from verl_gsd.report.sections import groups, policy
from verl_gsd.report.sections.extensions import extension_sections
from verl_gsd.report.sections.headline import headline_section
from verl_gsd.report.sections.prompts import prompts_section
from verl_gsd.report.sections.settings import settings_section
from verl_gsd.report.sections.studies import studies_section
from verl_gsd.report.sections.summary import findings_section, runs_section
from verl_gsd.report.sections.view import RunView, SectionBuilder
from verl_gsd.rundir import is_rehearsal

#: All sections in the order of the page. The sections of extensions follow.
SECTION_BUILDERS: tuple[SectionBuilder, ...] = (
    headline_section,
    findings_section,
    runs_section,
    studies_section,
    settings_section,
    policy.accuracy,
    groups.diversity,
    groups.disagreement,
    groups.silence,
    groups.difficulty,
    groups.waste,
    prompts_section,
    policy.entropy_and_length,
)


def read_runs(
    paths: Sequence[Path], readers: dict[Path, RunReader] | None = None, distrust: Distrust = unknown_origin
) -> list[RunData]:
    """Read the runs in the folders ``paths``. Each gets a unique name.

    Args:
        readers: readers of earlier calls, which read only what is new. Readers of other runs are added.
        distrust: as for ``RunReader``.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a run is given twice, or there are more runs than colours.
    """
    if len(paths) > len(COLOURS):
        raise ValueError(f"{len(paths)} runs are too many for one report. Use at most {len(COLOURS)}")
    readers = {} if readers is None else readers
    return [
        readers.setdefault(path, RunReader(path, distrust)).read(name)
        for path, name in zip(paths, unique_names(paths), strict=True)
    ]


#: What the title adds to the name of a rehearsal.
_REHEARSAL = " (a rehearsal: random weights, seeded scores)"


def check_not_empty(runs: Sequence[RunData]) -> None:
    """Check that each run has something to report.

    Raises:
        ValueError: a run has neither records nor metrics that can be read. The message names the run.
    """
    for run in runs:
        if run.is_empty():
            unreadable = f" These files cannot be read: {'; '.join(run.left_out())}." if run.skipped else ""
            raise ValueError(
                f"{run.name}: the folder has no records and no metrics to report.{unreadable} Use the folder of a run "
                "that has finished a step (trainer.default_local_dir)"
            )


def page_title(runs: Sequence[RunData]) -> str:
    """The names of the runs. A rehearsal is marked, because its figures look like those of a run."""
    marks = [is_rehearsal(run.config.get("trainer.default_local_dir")) for run in runs]
    names = (f"{run.name}{_REHEARSAL if mark else ''}" for run, mark in zip(runs, marks, strict=True))
    return "Report: " + ", ".join(names)


def build_sections(runs: Sequence[RunData]) -> list[Section]:
    """Build all sections for which the runs have data."""
    views = {run.name: RunView.of(run) for run in runs}
    # Altair validates each part of a chart here, and all of them again when the chart is drawn. The second is enough.
    with debug_mode(False):
        sections = [build(views) for build in SECTION_BUILDERS]
        return [section for section in (*sections, *extension_sections(views)) if section is not None]


def write_pngs(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Write every chart, with its title, to ``folder``/NAME.png, where NAME is its panel's name. Returns the paths.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    paths = []
    for section in sections:
        for panel in section.panels:
            path = folder / f"{panel.name}.png"
            write_png(panel.chart.properties(title=panel.title), path)
            paths.append(path)
    return paths
