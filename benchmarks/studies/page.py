"""The tables of ``docs/studies.md`` and of the README, which stand between two comments each, and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from verl_gsd.charts.theme import write_png

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "studies.md"
README = ROOT / "README.md"
#: The place in the README of the table that ``summary`` makes.
RESULTS = "results"
#: Name in ``curves`` -> title.
_CURVES = {"accuracy": "accuracy", "entropy": "entropy", "length": "length", "gradient_norm": "gradient norm"}
_COLUMNS = ("arm", "rate", "measure", "gain", "p", "hard", "middle", "easy", "entropy", "answers", "tokens", "diverged")


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a study: one row per task and arm, and what is missing."""
    lines = []
    if not result["rows"]:
        return "**Not run yet.**"
    if result["missing"]:
        lines += [f"**Partial.** Runs are missing of {_places(result['missing'])}.", ""]
    if result["earlier"]:
        lines += [f"**From an earlier start** are runs of {_places(result['earlier'])}.", ""]
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        lines += [
            f"`task={task}`, {result['budget_tokens'][task]:,} tokens:",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"|{'---|' * len(_COLUMNS)}",
            *(f"| {' | '.join(_cells(row))} |" for row in result["rows"] if row["task"] == task),
            "",
        ]
    if result["curves"]:
        lines += [*_curve_table(result["curves"]), ""]
    if has_picture(result):
        what = "Accuracy, entropy, length and gradient norm" if result["curves"] else "Gains with 95% intervals"
        lines.append(f"![{what}.](pictures/{picture_of(result['study']['name']).name})")
    return "\n".join(lines).strip()


def _places(places: Sequence[str]) -> str:
    """How many arms of each task are named in ``places``."""
    arms = Counter(place.partition("/")[0] for place in places)
    return ", ".join(f"{count} {'arm' if count == 1 else 'arms'} on `{task}`" for task, count in arms.items())


def has_picture(result: Mapping[str, Any]) -> bool:
    return bool(result["curves"]) or any(row["gain"] for row in result["rows"])


def _curve_table(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """Five points of the curves of each arm: the mean over its runs, and the lowest and the highest run."""
    count = min(len(curve["steps"]) for curve in curves)
    points = sorted({round(share * (count - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    lines = [
        "Each number is the mean over runs, with the lowest and the highest run. The accuracy is that of the step. The "
        "other three are means over the steps since the validation before.",
        "",
        f"| arm | step | {' | '.join(_CURVES.values())} |",
        f"|{'---|' * (len(_CURVES) + 2)}",
    ]
    for place in dict.fromkeys((curve["task"], curve["arm"]) for curve in curves):
        runs = [curve for curve in curves if (curve["task"], curve["arm"]) == place]
        for point in points:
            cells = [_range([curve[name][point] for curve in runs]) for name in _CURVES]
            lines.append(f"| `{place[1]}` | {runs[0]['steps'][point]} | {' | '.join(cells)} |")
    return lines


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean, low, high = (f"{value:.3g}" for value in (sum(known) / len(known), min(known), max(known)))
    return f"{mean} [{low}, {high}]"


def _cells(row: Mapping[str, Any]) -> list[str]:
    gain, levels, late = row["gain"], row["gain_by_level"] if row["gain"] else {}, row["late"]
    return [
        f"`{row['arm']}`",
        f"{row['rate']:.2g}",
        f"{row['measure']['mean']:.3f}",
        _interval(gain) if gain else "",
        _p(gain["p_adjusted"]) if gain else "",
        *(f"{levels[name]['mean']:+.3f}" if name in levels else "" for name in ("hard", "middle", "easy")),
        *("" if late[name] is None else f"{late[name]:.2f}" for name in ("entropy", "distinct_answers")),
        f"{row['tokens_per_step']:.0f}",
        f"{row['diverged']} of {len(row['seeds'])}",
    ]


def summary(methods: Mapping[str, Any], stability: Mapping[str, Any]) -> str:
    """The README's table: gains of each method over GRPO, how far above its best rate it is stable, and its cost.

    Args:
        methods, stability: the results of these studies.
    """
    tasks = list(dict.fromkeys(row["task"] for row in methods["rows"]))
    rows = {(row["task"], row["arm"]): row for row in methods["rows"]}
    stable = _stable_up_to(stability)
    titles = ["method", *(f"`{task}`" for task in tasks), "tokens per step, GRPO = 1"]
    if stable:
        titles.append("stable up to this multiple of its rate")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for arm in dict.fromkeys(row["arm"] for row in methods["rows"]):
        own = [rows.get((task, arm)) for task in tasks]
        costs = [
            row["tokens_per_step"] / rows[row["task"], "grpo"]["tokens_per_step"]
            for row in own
            if row is not None and (row["task"], "grpo") in rows
        ]
        cost = f"{min(costs):.1f}" if max(costs) - min(costs) < 0.05 else f"{min(costs):.1f} to {max(costs):.1f}"
        gains = [_gain_cell(row, arm == "grpo") for row in own]
        cells = [f"`{arm}`", *gains, cost, *([stable.get(arm, "")] if stable else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gain_cell(row: Mapping[str, Any] | None, is_baseline: bool) -> str:
    """The gain; the measure of the baseline; empty if there is no run, or none from the baseline's start."""
    if row is None or (row["gain"] is None and not is_baseline):
        return ""
    if row["gain"] is None:
        return f"{row['measure']['mean']:.3f}"
    interval = _interval(row["gain"])
    return f"**{interval}**" if row["gain"]["p_adjusted"] < 0.05 else interval


def _stable_up_to(stability: Mapping[str, Any]) -> dict[str, str]:
    """Method -> the largest multiple of its best rate up to which no run diverged, once all its multiples have runs."""
    diverged: dict[str, dict[int, int]] = {}
    for row in stability["rows"]:
        name, _, times = row["arm"].rpartition("_x")
        diverged.setdefault(name, {})[int(times)] = row["diverged"]
    waiting = {place.partition("/")[2].partition(":")[0].rpartition("_x")[0] for place in stability["missing"]}
    found = {}
    for name, counts in diverged.items():
        if name not in waiting:
            unstable = [times for times, count in counts.items() if count]
            stable = [times for times in counts if times < min(unstable, default=max(counts) + 1)]
            found[name] = f"{max(stable)} x" if stable else "none"
    return found


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def with_table(text: str, name: str, table: str) -> str:
    """The page with a study's table between its two comments.

    Raises:
        ValueError: the page has no such comments.
    """
    pattern = re.compile(rf"(<!-- table of {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no place for the table: <!-- table of {name} --> and <!-- end of {name} -->")
    return pattern.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)


def picture_of(name: str) -> Path:
    return ROOT / "docs" / "pictures" / f"study_{name}.png"


def draw(result: Mapping[str, Any], output: Path) -> None:
    """The curves of a study's runs if it has any, or else the gains over the baseline with their intervals."""
    write_png(_curve_panels(result["curves"]) if result["curves"] else gain_panels(result), output)


def _curve_panels(curves: Sequence[Mapping[str, Any]]) -> alt.ConcatChart:
    """One panel per metric, with one line per run."""
    panels = []
    for name, title in _CURVES.items():
        points = [
            {"arm": curve["arm"], "run": f"{curve['arm']} {curve['seed']}", "step": step, "value": value}
            for curve in curves
            for step, value in zip(curve["steps"], curve[name], strict=True)
        ]
        lines = alt.Chart(alt.Data(values=points)).mark_line(strokeWidth=1, opacity=0.8)
        y = alt.Y("value:Q", title=title, scale=alt.Scale(type="log" if name == "gradient_norm" else "linear"))
        panels.append(lines.encode(x="step:Q", y=y, color="arm:N", detail="run:N").properties(width=300, height=160))
    return alt.concat(*panels, columns=2)


def gain_panels(result: Mapping[str, Any]) -> alt.HConcatChart:
    """One panel per task."""
    compared = [row for row in result["rows"] if row["gain"]]
    return alt.hconcat(
        *(
            _gain_panel(task, [row for row in compared if row["task"] == task])
            for task in dict.fromkeys(row["task"] for row in compared)
        )
    )


def _gain_panel(task: str, rows: Sequence[Mapping[str, Any]]) -> alt.LayerChart:
    points = [{"arm": row["arm"], **{name: row["gain"][name] for name in ("mean", "low", "high")}} for row in rows]
    order = [point["arm"] for point in points]
    base = alt.Chart(alt.Data(values=points)).encode(y=alt.Y("arm:N", sort=order, title=None))
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="gain over the baseline"), x2="high:Q")
    means = base.mark_point(filled=True, size=60, opacity=1).encode(x="mean:Q")
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[4, 4], color="#777777").encode(x=alt.datum(0))
    return alt.layer(zero, bars, means).properties(width=240, title=task)
