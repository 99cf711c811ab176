"""The lab's page: sections of text, tables and charts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import altair as alt

from verl_gsd.charts import Panel, Section, Table
from verl_gsd.lab import lab_charts, words
from verl_gsd.lab.experiment import Results

TITLE = "What each algorithm does to easy and hard prompts"


def sections(results: Results) -> list[Section]:
    """The page from top to bottom: results of the runs, then the paper's figures."""
    charts = charts_of(results)
    panels = [Panel(slug, name, charts[slug]) for name, slug in _slugs(results).items()]
    grey = "GRPO's are in grey." if "grpo" in results.runs else ""
    page = [
        Section(
            "in-short",
            "In short",
            [words.setting(results), words.legend()],
            table=Table(words.RUNS_HEADER, words.run_rows(results)),
        ),
        Section("caveats", "What this does not show", words.caveats(results)),
        Section(
            "first-update",
            "Where the first update goes",
            ["Shares, in percent, of the change of all logits at the start, by solve rate, at any learning rate."],
            charts["first-update"],
        ),
        Section(
            "quarters",
            "Easy and hard prompts over the steps",
            [f"Mean solve rate of the prompts in each quarter by their rate at the start. {grey}".strip()],
            panels=panels,
        ),
        Section(
            "algorithms",
            "What each algorithm does here",
            table=Table(words.ALGORITHMS_HEADER, words.algorithm_rows(results)),
        ),
        Section(
            "by-rollouts",
            "The hardest quarter by rollouts",
            ["By generated rollouts instead of steps, up to those of the run that generated least."],
            charts["by-rollouts"],
        ),
        Section(
            "final-rates",
            "Solve rates at the end",
            [f"Shares of the prompts, in percent, after {results.steps} steps."],
            charts["final-rates"],
        ),
    ]
    for number, (title, figures) in enumerate(results.tables.items()):
        text = ["Figures of arXiv 2607.00152, published and recomputed."]
        if number:
            text.append(words.data_remark(results))
        table = Table(words.FIGURES_HEADER, words.figure_rows(figures))
        page.append(Section(f"paper-{number}", f"The paper's figures {title}", text, table=table))
    return page


def charts_of(results: Results) -> Mapping[str, alt.TopLevelMixin]:
    """Every chart, by the name of its section or panel, which is also its file name."""
    runs = results.runs
    whole = {
        "first-update": lab_charts.first_update(next(iter(runs.values())).start, results.first_updates),
        "by-rollouts": lab_charts.hardest_by_rollouts(runs),
        "final-rates": lab_charts.final_rates(runs),
    }
    reference = runs.get("grpo")
    quarters = {
        slug: lab_charts.by_quarter(runs[name], None if name == "grpo" else reference)
        for name, slug in _slugs(results).items()
    }
    return whole | quarters


def _slugs(results: Results) -> dict[str, str]:
    """Each algorithm's name for links and files, for example ``quarters-03-alpha-0-5`` for ``alpha=-0.5``."""
    plain = {name: re.sub(r"[^A-Za-z0-9]+", "-", name) for name in results.runs}
    return {name: f"quarters-{place:02d}-{slug}" for place, (name, slug) in enumerate(plain.items(), 1)}
