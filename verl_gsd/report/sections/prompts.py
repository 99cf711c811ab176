"""Prompts with their responses: those whose responses differ most in score, and some whose responses agree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from verl_gsd.charts import Entry, Quote, QuoteColumn, Section
from verl_gsd.report.responses import StoredGroup
from verl_gsd.report.sections.view import Views

#: Maximum number of prompts, of responses per prompt and run, and of characters of a text.
MOST_PROMPTS, MOST_RESPONSES, MOST_CHARACTERS = 20, 8, 1500
#: Share of the prompts on which responses may agree.
_SILENT_SHARE = 0.4
_TITLE = 100
#: What chat templates put after the user's text: the mark of the assistant's turn.
_TURN = re.compile(r"(?:<[^<>]{1,40}>|\s|\bassistant\b)+$")


def prompts_section(views: Views) -> Section | None:
    """Entries with the responses of each run side by side; None if no run stored any."""
    stored = {name: view.run.stored for name, view in views.items() if view.run.stored.groups}
    if not stored:
        return None
    by_prompt: dict[tuple[str, str], dict[str, StoredGroup]] = {}
    for name, groups in stored.items():
        for group in groups.groups:  # the newest step first
            by_prompt.setdefault((group.prompt, group.reference), {}).setdefault(name, group)
    chosen = _chosen(list(by_prompt.values()), max(MOST_PROMPTS // len(stored), 4))
    return Section(
        "prompts",
        "Prompts and responses",
        _text(views, len(chosen), len(by_prompt)),
        entries=[_entry(groups, with_names=len(views) > 1) for groups in chosen],
    )


def _text(views: Views, shown: int, known: int) -> list[str]:
    sources = []
    for name, view in views.items():
        if steps := sorted({group.step for group in view.run.stored.groups}):
            of_run = f" of {name}" if len(views) > 1 else ""
            part = ", read in part" if view.run.stored.is_cut else ""
            sources.append(f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}{of_run}{part}")
    return [
        f"{shown} of {known} prompts are shown, from the stored responses of {'; '.join(sources)}. Prompts whose "
        "responses differ most in score come first. At the end are prompts whose responses all have the same score: "
        "the lowest and the highest. See there whether the scores are right.",
        f"Of each prompt, {MOST_RESPONSES} responses at most are shown, with the highest and the lowest scores. Texts "
        f"of more than {MOST_CHARACTERS:,} characters are cut in the middle.",
    ]


def _chosen(prompts: list[dict[str, StoredGroup]], number: int) -> list[dict[str, StoredGroup]]:
    """At most ``number`` prompts, by disagreement. Those that several runs visited come first."""

    def rank(groups: Mapping[str, StoredGroup]) -> tuple[int, float]:
        return -len(groups), -max(group.disagreement for group in groups.values())

    def mean(groups: Mapping[str, StoredGroup]) -> float:
        return float(np.mean([group.values.mean() for group in groups.values()]))

    mixed = sorted((groups for groups in prompts if _differs(groups)), key=rank)
    silent = [groups for groups in prompts if not _differs(groups) and all(len(g.values) for g in groups.values())]
    silent.sort(key=mean)
    n_silent = min(len(silent), max(round(_SILENT_SHARE * number), number - len(mixed)))
    low, high = silent[: (n_silent + 1) // 2], silent[len(silent) - n_silent // 2 :]
    return [*mixed[: number - n_silent], *low, *high]


def _differs(groups: Mapping[str, StoredGroup]) -> bool:
    return any(group.disagreement > 0 for group in groups.values())


def _entry(groups: Mapping[str, StoredGroup], *, with_names: bool) -> Entry:
    first = next(iter(groups.values()))
    notes = [
        f"{f'{name}: ' if with_names else ''}step {group.step}, {_scores(group)}" for name, group in groups.items()
    ]
    prompt = _cut(first.prompt.strip())
    return Entry(
        _title(first.prompt),
        "; ".join(notes),
        f"{prompt}\n\nReference answer: {_cut(first.reference)}" if first.reference else prompt,
        [QuoteColumn(name if with_names else "", _quotes(group)) for name, group in groups.items()],
    )


def _title(prompt: str) -> str:
    """The end of the prompt, because its beginning is often the same for all prompts."""
    text = " ".join(_TURN.sub("", prompt[-10 * _TITLE :]).split()) or prompt[-_TITLE:]
    return text if len(text) <= _TITLE else f"…{text[-_TITLE:]}"


def _scores(group: StoredGroup) -> str:
    values = group.values
    if not len(values):
        return "no scores"
    if set(values.tolist()) <= {0.0, 1.0}:
        return f"{int(values.sum())} of {len(values)} right"
    return f"scores {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}"


def _quotes(group: StoredGroup) -> Sequence[Quote]:
    ordered = sorted(group.responses, key=lambda response: -response[0] if response[0] == response[0] else np.inf)
    if len(ordered) > MOST_RESPONSES:
        half = MOST_RESPONSES // 2
        ordered = [*ordered[:half], *ordered[-half:]]
    of = f", {len(ordered)} of {len(group.responses)}" if len(ordered) < len(group.responses) else ""
    return [
        Quote(f"score {value:.3g}{of if number == 1 else ''}", _cut(text) or "(empty)")
        for number, (value, text) in enumerate(ordered, start=1)
    ]


def _cut(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[… {left_out:,} characters left out …]\n{text[-half:]}"
