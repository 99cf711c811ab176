"""``verl-gsd plan`` from the command line, and the figures in its tables."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import big_math
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from verl_gsd import planning
from verl_gsd.cli.main import app
from verl_gsd.cli.plan_tables import source_sentences
from verl_gsd.groups import Group
from verl_gsd.planning import summary
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.solve_rates import SolveRates


def invoke(*words):
    return CliRunner().invoke(app, ["plan", *map(str, words)], env={"COLUMNS": "160"})


def flat(text):
    return re.sub(r"\s+", " ", text)


def figures(output, name):
    """The numbers of the first printed row of that name, in order; None for a dash."""
    (line, *_) = [line for line in output.splitlines() if line.startswith(f"│ {name} ")]
    cells = [cell.strip(" %") for cell in line.strip("│").split("│")[1:]]
    return [None if cell == "-" else float(cell) for cell in cells]


def refused(done, message):
    assert done.exit_code == 2, done.output
    assert re.search(message, flat(done.stderr)), done.stderr
    return True


@pytest.fixture
def rates(tmp_path):
    """1000 prompts with 16 responses each, in a training set in verl's format."""
    rng = np.random.default_rng(0)
    correct = rng.binomial(16, rng.beta(0.5, 0.5, 1000))
    columns = {
        "data_source": ["maths"] * 1000,
        "prompt": [[{"role": "user", "content": f"{place}+1="}] for place in range(1000)],
        "extra_info": [{"index": place} for place in range(1000)],
        "rate": correct / 16,
    }
    path = tmp_path / "rates.parquet"
    pq.write_table(pa.table(columns), path)
    return path, correct


# The mathematics


def test_a_summary_is_the_mean_over_prompts():
    p = np.array([0.0, 0.25, 0.5, 1.0])
    correct, total = np.array([0, 2, 4, 4]), np.array([8, 8, 8, 4])
    found = summary.summarize(p, correct, total, 8)
    assert found.silent == pytest.approx(np.mean([1, 0.75**8 + 0.25**8, 2 * 0.5**8, 1]))
    assert found.gain == pytest.approx(np.mean([planning.expected_std(rate, 8) for rate in p]))
    assert found.fidelity == pytest.approx(np.mean(planning.fidelity([0.25, 0.5], 8)), abs=1e-15)
    assert found.unbiased.prompts == 3, "one has too few responses"
    assert found.unbiased.silent == pytest.approx(1 / 3) and found.unbiased.gain > 0
    assert summary.summarize(p, correct, total, 9).unbiased is None
    assert summary.summarize(p, None, None, 8).unbiased is None
    assert math.isnan(summary.summarize(p[[0, 3]], None, None, 8).fidelity)


@given(st.lists(st.integers(0, 64), min_size=1, max_size=30), st.integers(2, 12), st.sampled_from([0.0, 1.0, 2.0, 0.5]))
def test_gradient_shares_sum_to_1_and_are_mirrored_for_mirrored_prompts(solved, size, alpha):
    p = np.array(solved) / 64
    for group_size in (size, None):
        shares = summary.share_by_bin(p, summary.gradient_mass(p, alpha, group_size))
        if ((p == 0) | (p == 1)).all():
            assert np.isnan(shares).all()
            continue
        assert shares.sum() == pytest.approx(1) and shares[0] == shares[-1] == 0
        mirrored = summary.share_by_bin(1 - p, summary.gradient_mass(1 - p, alpha, group_size))
        assert mirrored == pytest.approx(shares[::-1], abs=1e-9)


def test_bins_are_those_of_the_paper():
    p = np.array([0, 0.09, 0.1, 0.39, 0.4, 0.5, 0.6, 0.61, 0.9, 0.91, 1])
    assert summary.bin_of(p).tolist() == [0, 1, 2, 2, 3, 3, 3, 4, 4, 5, 6]


def test_gradient_mass_of_large_groups_approaches_the_limit():
    p = np.array([0.1, 0.3, 0.5, 0.0])
    for alpha in (0.0, 1.0, 2.0):
        large = summary.gradient_mass(p, alpha, 200_000)
        assert summary.gradient_mass(p, alpha) == pytest.approx(large, rel=1e-4)


def test_targets_have_exact_sizes():
    found = summary.target(np.array([0.5, 0.3, 0.1, 0.0]), "fidelity", 0.95)
    assert found.smallest.tolist() == [11, 14, 36, math.inf]
    assert [found.reached(size) for size in (10, 11, 14, 36)] == [0, 0.25, 0.5, 0.75]
    assert [found.quantile(share) for share in (0.1, 0.25, 0.26, 0.75, 0.9)] == [11, 11, 14, 36, math.inf]
    with pytest.raises(ValueError, match=r"mixed=1 is .*0 and 1"):
        summary.target(np.array([0.5]), "mixed", 1.0)


def test_sampling_factor_of_dynamic_sampling():
    assert summary.sampling_factor(0.5) == 2 and summary.sampling_factor(1.0) == math.inf


# What is printed


def test_several_group_sizes_are_printed_side_by_side(rates):
    path, correct = rates
    words = ("--column", "rate", "--samples", 16, "--group-size", 4, "--group-size", "8,32", "--target", "mixed=0.9")
    done = invoke("--solve-rates", path, *words)
    assert done.exit_code == 0, done.output
    p = correct / 16
    silent = [100 * float(np.mean(planning.silent_rate(p, size))) for size in (4, 8, 32)]
    assert figures(done.output, "silent groups (exact rates)") == pytest.approx(silent, abs=0.0051)
    unbiased = [100 * float(np.mean(planning.silent_rate_from_counts(correct, 16, size))) for size in (4, 8)]
    *shown, last = figures(done.output, "silent groups (unbiased)")
    assert shown == pytest.approx(unbiased, abs=0.0051) and last is None, "32 cannot be drawn of 16"
    assert figures(done.output, "prompts behind unbiased figures") == [1000, 1000, 0]
    assert figures(done.output, "groups per mixed group (exact rates)") == pytest.approx(
        [1 / (1 - share / 100) for share in silent], abs=0.0051
    )
    reached = [100 * float(np.mean(planning.required_group_size(p, 0.1, "mixed") <= size)) for size in (4, 8, 32)]
    assert figures(done.output, "prompts with mixed >= 0.9") == pytest.approx(reached, abs=0.051)
    assert re.search("1000 prompts from .* 16 responses", flat(done.output))


def test_gradient_shares_are_printed_for_every_exponent(rates):
    path, correct = rates
    done = invoke("--solve-rates", path, "--column", "rate", "--alpha", 2, "--alpha", 1)
    p = correct / 16
    tables = done.output.split("Where the gradient comes from")
    for text, size in zip(tables[1:], (None, 8), strict=True):
        assert ("limit of large groups" if size is None else "groups of 8") in text
        for place, name in enumerate(summary.BINS):
            shares = [summary.share_by_bin(p)] + [
                summary.share_by_bin(p, summary.gradient_mass(p, alpha, size)) for alpha in (1.0, 0.0, 2.0)
            ]
            assert figures(text, name) == pytest.approx([100 * share[place] for share in shares], abs=0.051)
    assert re.search("unbiased .* G responses", flat(done.output), re.IGNORECASE)
    assert "silent groups (unbiased)" not in done.output


def test_big_math_figures_are_those_of_the_paper():
    done = invoke("--solve-rates", big_math.FILE, "--group-size", "4,8,16,32,64")
    assert done.exit_code == 0, done.output
    assert figures(done.output, "silent groups (exact rates)") == [59.27, 44.28, 32.24, 23.01, 16.53]
    unbiased = figures(done.output, "silent groups (unbiased)")
    assert unbiased == pytest.approx([58.59, 43.07, 30.19, 19.64, 11.18], abs=0.006)
    assert figures(done.output, "groups per mixed group (exact rates)")[1] == pytest.approx(1.80, abs=0.011)
    assert figures(done.output, "0")[0] == 4.0 and figures(done.output, "1")[0] == 7.2
    assert figures(done.output, "below 0.1 or above 0.9")[1:] == [24.7, 13.9]
    assert figures(done.output, "0.4 to 0.6")[1:] == [17.5, 22.8]


def test_skipped_rows_are_reported(tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text("name,rate\na,0.5\nb,\nc,nan\n")
    done = invoke("--solve-rates", path, "--column", "rate")
    assert done.exit_code == 0, done.output
    assert "1 prompts from" in done.output and "2 of 3 rows" in flat(done.output)


def test_figures_of_dumps_without_silent_groups_are_not_called_unbiased(tmp_path):
    (tmp_path / "dumps").mkdir()
    rows = [
        {
            "input": f"q{prompt}",
            "output": "x",
            "gts": "1",
            "score": float(n <= prompt),
            "step": 1,
            "uid": f"u{prompt}_{n}_0",
        }
        for prompt in range(3)
        for n in range(4)
    ]
    (tmp_path / "dumps" / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = invoke("--solve-rates", tmp_path / "dumps", "--group-size", 4)
    assert done.exit_code == 0, done.output
    assert "algorithm.filter_groups" in flat(done.output)
    assert figures(done.output, "silent groups (exact rates)") and "groups (unbiased)" not in done.output
    more = [row | {"input": "q9", "uid": f"u9_{n}_0", "score": 0.0} for n, row in enumerate(rows[:4])]
    (tmp_path / "dumps" / "2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    done = invoke("--solve-rates", tmp_path / "dumps", "--group-size", 4)
    assert figures(done.output, "silent groups (unbiased)") == [25.0] and "filter_groups" not in flat(done.output)


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_is_allocated_from_dumps(tmp_path, rates, silent):
    """They lack what dynamic sampling evicted, and do not name the rows of the training set."""
    scores = {"0+1=": [0, 1], "1+1=": [0, 0] if silent else [1, 0]}
    rows = [
        {"input": prompt, "output": "x", "gts": "1", "score": score, "step": 1, "uid": f"{prompt}_{n}_0"}
        for prompt, scores_of_group in scores.items()
        for n, score in enumerate(scores_of_group)
    ]
    (tmp_path / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.parquet"
    done = invoke("--solve-rates", tmp_path / "1.jsonl", "--data", rates[0], "--allocate", out)
    refused(done, r"1\.jsonl: verl's dumps .*--solve-rates .*folder")
    assert ("dynamic sampling" in flat(done.stderr)) is not silent and not out.exists()


def test_figures_of_dumps_that_may_have_earlier_responses_are_not_called_unbiased(tmp_path):
    row = {"input": "q", "output": "x", "gts": "1", "score": 0.0, "step": 2}
    lines = [row | {"uid": f"u_{n}_0"} for n in (0, 1, 4, 5)]
    path = tmp_path / "2.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = invoke("--solve-rates", path, "--group-size", 2)
    assert done.exit_code == 0, done.output
    assert "lack session numbers" in flat(done.output) and "groups (unbiased)" not in done.output
    marks = ["policy", "policy", "earlier", "earlier"]
    marked = [line | {"gsd_origin": mark} for line, mark in zip(lines, marks, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in marked))
    done = invoke("--solve-rates", path, "--group-size", 2)
    assert figures(done.output, "silent groups (unbiased)") == [100.0] and "lack session" not in flat(done.output)
    assert "2 demonstrations and responses of earlier steps" in flat(done.output)


def test_prompts_at_rates_0_and_1_alone_do_not_crash(tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text("name,rate\na,0\nb,1\n")
    done = invoke("--solve-rates", path, "--column", "rate", "--target", "fidelity=0.9", "--plot", tmp_path / "p.html")
    assert done.exit_code == 0, done.output
    assert figures(done.output, "groups per mixed group (exact rates)") == [math.inf]
    assert figures(done.output, "fidelity 0.9") == [None] * 5 + [100]
    assert figures(done.output, "0.4 to 0.6") == [0, None, None]


def test_mistakes_are_reported_before_anything_is_written(tmp_path, rates):
    path, _ = rates
    given_ = ("--solve-rates", path, "--column", "rate")
    refused(invoke("--solve-rates", path), "column")
    refused(invoke("--solve-rates", tmp_path / "none.csv"), r"none\.csv")
    refused(invoke(*given_, "--group-size", "8,x"), "--group-size x: .* 2 ")
    refused(invoke(*given_, "--group-size", 1), "--group-size 1: .* 2 ")
    refused(invoke(*given_, "--target", "0.9"), r"--target 0\.9: .*fidelity=X .*mixed=X")
    refused(invoke(*given_, "--target", "mixed=1.5"), r"--target mixed=1\.5: ")
    refused(invoke(*given_, "--alpha", "nan"), "alpha=nan is not finite")
    refused(invoke(*given_, "--plot", tmp_path / "p.jpg"), r"p\.jpg.*\.html .*\.png")
    refused(invoke(*given_, "--minimum", 3), "--minimum 3: .*--allocate")
    refused(invoke(*given_, "--samples", 7), "of 7 responses")
    out = tmp_path / "out.parquet"
    allocate = (*given_, "--allocate", out)
    refused(invoke(*allocate, "--group-size", "4,8"), "--group-size 4,8: .*--allocate")
    refused(invoke(*allocate, "--objective", "std"), "objective='std' is unknown.*expected_std, mixed, fidelity")
    refused(invoke(*allocate, "--minimum", 9), "1000 prompts .* 9 each")
    refused(invoke(*allocate, "--maximum", 7), "1000 prompts .* 7 each")
    refused(invoke(*allocate, "--batch-size", 0), "batch_size=0 is ")
    refused(invoke(*allocate, "--batch-size", 100_000), "batch_size=100000: ")
    refused(invoke(*given_, "--allocate", tmp_path / "out.jsonl"), r"out\.jsonl.*\.parquet")
    refused(invoke(*given_, "--allocate", path), r"rates\.parquet")
    refused(invoke(*allocate, "--maximum", 7, "--plot", tmp_path / "p.html"), " 7 each")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# Pictures


def test_charts_are_written_to_a_page_or_a_png(tmp_path, rates):
    path, _ = rates
    for name in ("plan.html", "plan.png"):
        words = ("--column", "rate", "--samples", 16, "--target", "mixed=0.9", "--plot", tmp_path / name)
        done = invoke("--solve-rates", path, *words)
        assert done.exit_code == 0 and name in done.output, done.output
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "plan.html").read_text()
    data = [json.loads(found) for found in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)]
    assert len(data) == 3
    histogram, silence, mass = (next(of["values"] for of in one["data"] if "values" in of) for one in data)
    assert sum(bar["prompts"] for bar in histogram) == 1000
    assert {(one["estimate"], one["size"]) for one in silence} >= {("exact rates", 64), ("unbiased", 16)}
    assert max(one["size"] for one in silence if one["estimate"] == "unbiased") == 16
    for series in ("prompts", "GRPO", "Dr. GRPO"):
        assert sum(bar["share"] for bar in mass if bar["of"] == series) == pytest.approx(1)


# Allocation


def written(path):
    table = pq.read_table(path)
    return table, table.column("__rollout_n__").to_numpy()


def test_a_training_set_with_a_group_size_for_each_prompt(tmp_path, rates):
    path, correct = rates
    out = tmp_path / "new" / "out.parquet"
    done = invoke("--solve-rates", path, "--column", "rate", "--samples", 16, "--allocate", out)
    assert done.exit_code == 0, done.output
    table, sizes = written(out)
    assert table.schema.field("__rollout_n__").type == pa.int64()
    assert table.drop_columns(["__rollout_n__"]).equals(pq.read_table(path)), "rows, columns and their order are kept"
    assert sizes.sum() == 8 * 1000 and sizes.min() >= 2
    assert sizes.tolist() == planning.allocate_from_counts(correct, np.full(1000, 16), 8000).tolist()
    said = flat(done.output)
    worth = [planning.posterior_expected_std(correct, 16, one).mean() for one in (np.full(1000, 8), sizes)]
    assert f"mean gain {worth[0]:.4f} -> {worth[1]:.4f} ({worth[1] / worth[0] - 1:+.1%})" in said
    assert "8000 = 8 x 1000" in said and "data.train_files=" in said and "--batch-size B" in said
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    again = invoke("--solve-rates", out, "--column", "rate", "--allocate", tmp_path / "twice.parquet")
    refused(again, "__rollout_n__")


def test_rates_without_counts_are_treated_as_exact_with_a_notice(tmp_path, rates):
    path, correct = rates
    words = ("--objective", "mixed", "--minimum", 3, "--maximum", 9, "--group-size", 6)
    done = invoke("--solve-rates", path, "--column", "rate", "--allocate", tmp_path / "out.parquet", *words)
    assert done.exit_code == 0, done.output
    _, sizes = written(tmp_path / "out.parquet")
    exact = planning.allocate(correct / 16, 6000, objective="mixed", minimum=3, maximum=9)
    assert sizes.tolist() == exact.tolist() and (sizes.min(), sizes.max()) == (3, 9)
    assert "exact" in flat(done.output)


def test_batch_size_makes_the_total_of_each_batch_exact(tmp_path, rates):
    path, _ = rates
    words = ("--column", "rate", "--samples", 16, "--allocate", tmp_path / "out.parquet", "--batch-size", 64)
    done = invoke("--solve-rates", path, *words)
    assert done.exit_code == 0 and "data.shuffle=false" in flat(done.output), done.output
    _, sizes = written(tmp_path / "out.parquet")
    for start in range(0, 1000, 64):
        batch = sizes[start : start + 64]
        assert batch.sum() == 8 * len(batch)
    assert len(set(sizes.tolist())) > 2


def test_rollouts_are_allocated_from_the_records_of_a_run(tmp_path, rates):
    path, _ = rates
    groups = [
        Group("u", "maths", index, *(np.array([1.0] * right + [0.0] * (8 - right)),) * 2, np.ones(8, dtype=int))
        for index, right in ((999, 4), (3, 0), (500, 7), (7, 8))
    ]
    for step in (1, 2, 3, 4):
        table = step_records([LeftGroup(group, "trained") for group in groups], step=step, attempt=1, alpha=1.0)
        write_step(tmp_path / "run", table, step=step, attempt=1)
    out = tmp_path / "out.parquet"
    done = invoke("--solve-rates", tmp_path / "run", "--data", path, "--allocate", out)
    assert done.exit_code == 0, done.output
    _, sizes = written(out)
    assert re.search("996 rows .* 8 each", flat(done.output))
    assert sizes.sum() == 8000 and (np.delete(sizes, [3, 7, 500, 999]) == 8).all()
    shared = planning.allocate_from_counts([16, 0, 28, 32], [32] * 4, 32)
    assert sizes[[999, 3, 500, 7]].tolist() == shared.tolist() and len(set(shared.tolist())) > 1
    refused(invoke("--solve-rates", tmp_path / "run", "--allocate", tmp_path / "b.parquet"), "--data")
    strange = pq.read_table(path).slice(10, 20)
    pq.write_table(strange, tmp_path / "strange.parquet")
    words = ("--data", tmp_path / "strange.parquet", "--allocate", tmp_path / "b.parquet")
    refused(invoke("--solve-rates", tmp_path / "run", *words), "20 rows")
    assert not (tmp_path / "b.parquet").exists()


def test_a_full_disk_leaves_no_half_file(tmp_path, rates, monkeypatch):
    path, _ = rates

    def full_disk_stub(table, where, **_):
        where.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk_stub)
    done = invoke("--solve-rates", path, "--column", "rate", "--allocate", tmp_path / "out.parquet")
    refused(done, "No space left on device")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_written_training_set_loads_as_in_verl(tmp_path, rates):
    """verl uses the datasets library, whose metadata of a file's columns must not hide the additional column."""
    import datasets

    path, _ = rates
    own = tmp_path / "own.parquet"
    datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "a"))["train"].to_parquet(str(own))
    assert b"huggingface" in (pq.read_schema(own).metadata or {}), "what is tested against"
    done = invoke("--solve-rates", own, "--column", "rate", "--allocate", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.output
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "b"))[
        "train"
    ]
    row = loaded[0]
    assert type(row["__rollout_n__"]) is int and row["prompt"] == pq.read_table(own)["prompt"][0].as_py()


def test_partial_credit_is_said_to_be_taken_for_a_rate():
    rates = SolveRates(Path("run"), np.array([0.5, 0.25]), None, None, None, graded=1)
    first, graded = source_sentences(rates)
    assert "without counts" in first and "unknown" not in first
    assert graded.startswith("Prompts with verdicts between 0 and 1 (partial credit): 1. ")
    assert not any("partial credit" in text for text in source_sentences(replace(rates, graded=0)))


def test_prompts_with_partial_credit_get_rollouts_by_how_much_their_responses_differ(tmp_path, rates):
    """One response with half a credit changes nothing for the other prompts, and equal verdicts are a silent group."""
    path, _ = rates
    verdicts = {3: [0.0] * 8, 7: [1.0] * 4 + [0.0] * 4, 500: [0.5] * 8, 999: [0.5] + [1.0] * 3 + [0.0] * 4}
    for step in (1, 2):
        left = [
            LeftGroup(Group("u", "maths", index, np.array(acc), np.array(acc), np.ones(8, dtype=int)), "trained")
            for index, acc in verdicts.items()
        ]
        write_step(tmp_path / "run", step_records(left, step=step, attempt=1, alpha=1.0), step=step, attempt=1)
    out = tmp_path / "out.parquet"
    done = invoke("--solve-rates", tmp_path / "run", "--data", path, "--allocate", out)
    assert done.exit_code == 0, done.output
    _, sizes = written(out)
    counts, partial = ([0, 8, 8, 7], [16] * 4), [0, 0, 4, 0.5]
    expected = planning.allocate_from_counts(*counts, 32, partial=partial)
    assert sizes[[3, 7, 500, 999]].tolist() == expected.tolist()
    assert sizes[500] < min(sizes[3], sizes[7]), "the verdicts of prompt 500 never differ"
    said = flat(done.output)
    assert "partial credit counts by its spread" in said
    assert "--samples" not in said and "--total-column" not in said, "they have no effect on the folder of a run"
    gains = [
        planning.posterior_expected_std(*counts, each, partial=partial).mean() for each in (np.full(4, 8), expected)
    ]
    assert f"mean gain {gains[0]:.4f} -> {gains[1]:.4f}" in said


def test_advice_on_counts_can_be_followed(tmp_path, rates):
    path, _ = rates
    table = invoke("--solve-rates", path, "--column", "rate", "--allocate", tmp_path / "out.parquet")
    said = flat(table.output)
    assert "Unbiased figures need G responses per prompt: set --samples or --total-column" in said
    assert "Use --samples or --total-column to say how many responses there were" in said
    few = invoke("--solve-rates", path, "--column", "rate", "--samples", 16, "--group-size", 32)
    assert "no prompt has more than 16" in flat(few.output) and "set --samples" not in flat(few.output)
    group = Group("u", "maths", 3, *(np.array([0.5, 1.0]),) * 2, np.ones(2, dtype=int))
    records = step_records([LeftGroup(group, "trained")], step=1, attempt=1, alpha=1.0)
    whole = records.drop_columns(["partial", "answers"])  # of a version without the column: the spread is unknown
    write_step(tmp_path / "run", whole, step=1, attempt=1)
    done = invoke("--solve-rates", tmp_path / "run", "--data", path, "--allocate", tmp_path / "old.parquet")
    assert done.exit_code == 0, done.output
    said = flat(done.output)
    assert "treated as exact" in said and "--samples" not in said and "verdicts of 0 and 1" in said
