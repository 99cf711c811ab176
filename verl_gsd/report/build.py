"""A report of runs: sections of one page, and the same charts as PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verl_gsd.charts import COLOURS, Section, write_png
from verl_gsd.report.reading import Run, names_of, read_run
from verl_gsd.report.sections import extensions, groups, policy, words
from verl_gsd.report.sections.view import Part, View

#: After the words, in the order of a page. The sections of extensions follow.
PARTS: tuple[Part, ...] = (
    policy.accuracy,
    groups.disagreement,
    groups.silence,
    groups.difficulty,
    groups.waste,
    policy.entropy_and_length,
)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs in ``paths``, named apart.

    Raises:
        FileNotFoundError: one is no folder.
        ValueError: one is given twice, or there are more than colours can tell apart.
    """
    if len(paths) > len(COLOURS):
        raise ValueError(f"{len(paths)} runs: colours tell {len(COLOURS)} apart. Name fewer")
    return [read_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def require_content(runs: Sequence[Run]) -> None:
    """Refuse a run of which there is nothing to report.

    Raises:
        ValueError: one has neither records nor metrics that can be read; the message names it.
    """
    for run in runs:
        if run.is_empty():
            why = f" What is there cannot be read: {'; '.join(run.left_out())}." if run.skipped else ""
            raise ValueError(
                f"{run.name}: neither records nor metrics there.{why} Write the folder of a run that has made a step "
                "(trainer.default_local_dir)"
            )


def title_of(runs: Sequence[Run]) -> str:
    return "Report: " + ", ".join(run.name for run in runs)


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All that the runs have something to show of, words first."""
    views = {run.name: View.of(run) for run in runs}
    parts = [words.wrong(views), words.runs(views), *(part(views) for part in PARTS), *extensions.of_extensions(views)]
    return [section for section in parts if section is not None]


def write_pngs(folder: Path, sections: Sequence[Section]) -> list[Path]:
    """Every chart as ``folder``/<its name>.png, with its title.

    Raises:
        OSError: there is no room, or no right to write.
    """
    written = []
    for section in sections:
        for panel in section.panels:
            path = folder / f"{panel.name}.png"
            write_png(panel.chart.properties(title=panel.title), path)
            written.append(path)
    return written
