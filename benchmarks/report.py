"""A report of a long run, 1,000 steps of 1,024 prompts: time to make, to watch and to open the page.

    python benchmarks/report.py

The run is made up, by the records' own writer: what is measured is reading, counting and drawing. Opening is from
navigation to the last chart drawn (``drawn``), in headless chromium from a local file; ``painted`` is when text stood,
and ``cpu`` what the page's main thread computed until then, which a busy machine stretches less.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import pyarrow as pa
import typer

from verl_gsd.answer_counts import ENTRY
from verl_gsd.records import schema, write_step
from verl_gsd.report.build import build_sections, read_runs
from verl_gsd.report.watch import PageCache

SIZE = 8
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")


def step_table(step: int, steps: int, prompts: int, rng: np.random.Generator) -> pa.Table:
    """One step's records, of prompts whose solve rates grow."""
    rate = np.clip(rng.beta(0.6, 0.8, prompts) + 0.4 * step / steps, 0, 1)
    correct = rng.binomial(SIZE, rate)
    mixed = (correct > 0) & (correct < SIZE)
    sigma = np.sqrt(correct * (SIZE - correct)) / SIZE
    pairs = np.where(mixed, correct * (SIZE - correct), 0)
    of_mixed = {
        "dagrpo_pairs": pairs,
        "dagrpo_pairs_kept": rng.binomial(pairs, 0.6),
        "dagrpo_pairs_contradicted": rng.binomial(pairs, 0.1),
        "judge_failed": rng.binomial(SIZE, 0.02, prompts),
        "judge_score": rng.uniform(3, 8, prompts),
    }
    index = rng.integers(0, 50_000, prompts)
    columns = {
        "step": np.full(prompts, step),
        "attempt": np.ones(prompts),
        "fate": np.where(mixed, np.where(rng.random(prompts) < 0.9, "trained", "surplus"), "filtered"),
        "data_source": np.full(prompts, "made up"),
        "index": index,
        "size": np.full(prompts, SIZE),
        "correct": correct,
        "total": np.full(prompts, SIZE),
        "mean": correct / SIZE,
        "std": sigma,
        "kind": np.where(mixed, "mixed", np.where(correct > 0, "all_right", "all_wrong")),
        "silent": ~mixed,
        "gain": sigma,
        "tokens": rng.integers(2_000, 16_000, prompts),
        "hadw_anchor": np.full(prompts, correct.mean() / SIZE),
        "hadw_factor_right": np.exp(correct.mean() / SIZE - correct / SIZE),
        "hadw_factor_wrong": np.exp(correct / SIZE - correct.mean() / SIZE),
        "demonstrations": (correct == 0).astype(int),
        "silent_predicted": rate**SIZE + (1 - rate) ** SIZE,
        "partial": np.zeros(prompts),
        "earlier": np.zeros(prompts),
        "mass": SIZE * sigma,
    }
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays |= {name: pa.array(values, mask=~mixed) for name, values in of_mixed.items()}
    cells, distinct = answers(index, correct, rng)
    arrays |= {"answers": pa.array(cells, pa.binary()), "distinct_answers": pa.array(distinct)}
    fields = schema()
    absent = {name: pa.nulls(prompts) for name in fields.names if name not in arrays}
    arrays |= absent
    return pa.table({name: arrays[name].cast(fields.field(name).type) for name in fields.names}, fields)


def answers(index: np.ndarray, correct: np.ndarray, rng: np.random.Generator) -> tuple[list[bytes], np.ndarray]:
    """Final answers of the groups: the right answer, and up to three wrong ones.

    Args:
        index: (n,) the groups' prompts. The answers of a prompt are the same at all visits.
        correct: (n,) the number of right responses.

    Returns:
        (n,) cells in the format of ``pack_answers``, and (n,) the number of different answers.
    """
    counts = np.column_stack([correct, rng.multinomial(SIZE - correct, [0.6, 0.3, 0.1])])
    entries = np.zeros(counts.shape, ENTRY)
    entries["digest"], entries["count"] = 4 * index[:, None] + 1 + np.arange(4), counts
    return [cell[cell["count"] > 0].tobytes() for cell in entries], (counts > 0).sum(axis=1)


def make_run(run: Path, steps: int, prompts: int) -> None:
    """Records and metrics of a run, some 150 scalars a step."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        write_step(run, step_table(step, steps, prompts, rng), step=step, attempt=1)
        data = {f"some/scalar_{number}": float(rng.random()) for number in range(130)}
        data |= {"training/global_step": step, "actor/entropy": 1 / (1 + step / 200), "dagrpo/pairs/tied": 0.1}
        data |= {f"gvpo/{name}": float(rng.random()) for name in ("mse", "s_std", "pull_over_push", "sequence_kl")}
        if step % 20 == 0:
            data["val-core/made up/acc/mean@1"] = 0.3 + 0.4 * step / steps
        lines.append(json.dumps({"step": step, "data": data}))
    (run / "metrics").mkdir()
    (run / "metrics" / "attempt_1.jsonl").write_text("\n".join(lines) + "\n")


def watched_step_cpu_s(run: Path, steps: int, prompts: int, rounds: int) -> list[float]:
    """Seconds of processor time in which ``report --watch`` rebuilds its page after a further step, of each round."""
    rng = np.random.default_rng(1)
    cache = PageCache([run])
    cache.page()
    seconds = []
    for step in range(steps + 1, steps + rounds + 1):
        write_step(run, step_table(step, steps, prompts, rng), step=step, attempt=1)
        start = time.process_time()
        cache.page()
        seconds.append(time.process_time() - start)
    return seconds


def opened(page_file: Path, width: int, height: int, rounds: int) -> dict[str, float]:
    """Milliseconds, medians over ``rounds`` visits of a fresh browser context."""
    from playwright.sync_api import sync_playwright

    drawn, painted, cpu = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": width, "height": height})
            page = context.new_page()
            devtools = context.new_cdp_session(page)
            devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(page_file.as_uri())
            page.wait_for_function("performance.getEntriesByName('drawn').length > 0", timeout=120_000)
            drawn.append(page.evaluate("performance.getEntriesByName('drawn')[0].startTime"))
            painted.append(page.evaluate("performance.getEntriesByType('paint')[0].startTime"))
            figures = devtools.send("Performance.getMetrics")["metrics"]
            cpu += [1e3 * figure["value"] for figure in figures if figure["name"] == "TaskDuration"]
            context.close()
        browser.close()
    return {
        "drawn_ms": statistics.median(drawn),
        "drawn_ms_range": [min(drawn), max(drawn)],
        "painted_ms": statistics.median(painted),
        "cpu_ms": statistics.median(cpu),
    }


def main(
    steps: Annotated[int, typer.Option(help="Steps of the run, a file of records each.")] = 1000,
    prompts: Annotated[int, typer.Option(help="Prompts a step.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/report.json"),
) -> None:
    """Measure, print, write down."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, steps, prompts)
        read, counted, command = [], [], []
        for _ in range(rounds):
            start = time.perf_counter()
            runs = read_runs([run])
            read.append(time.perf_counter() - start)
            sections = build_sections(runs)
            counted.append(time.perf_counter() - start - read[-1])
            start = time.perf_counter()
            subprocess.run([Path(sys.executable).with_name("verl-gsd"), "report", run], check=True, capture_output=True)
            command.append(time.perf_counter() - start)
        watched = watched_step_cpu_s(run, steps, prompts, rounds)
        page = run / "report.html"
        result = {
            "machine": publishing.machine(),
            "load": os.getloadavg()[0],  # of the machine, meanwhile
            "steps": steps,
            "rows": len(runs[0].records),
            "records_mb": sum(path.stat().st_size for path in run.rglob("*.parquet")) / 1e6,
            "read_s": statistics.median(read),
            "count_and_chart_s": statistics.median(counted),
            "command_s": statistics.median(command),
            "command_s_range": [min(command), max(command)],
            "charts": sum(len(section.panels) for section in sections),
            "page_mb": page.stat().st_size / 1e6,
            "watched_step_cpu_s_range": [min(watched), max(watched)],
            "desk": opened(page, 1280, 900, rounds),
            "phone": opened(page, 390, 844, rounds),
        }
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
