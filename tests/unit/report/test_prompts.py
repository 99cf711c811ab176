"""Prompts with their responses: which dumps are read, which prompts are shown, and how much of them."""

import json
import math
import re

import pytest
from report_runs import HOSTILE, config, everything, group, metrics, records, rollouts
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.report import responses
from verl_gsd.report.build import build_sections, read_runs
from verl_gsd.report.sections import prompts
from verl_gsd.rundir import RunDirectory

MIXED, WRONG, RIGHT = [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]


def a_run(folder, *, steps=(1, 2), rollout_data_dir=None):
    for step in steps:
        records(folder, step, (MIXED, "trained"))
    own = {"default_local_dir": str(folder), "rollout_data_dir": str(rollout_data_dir or folder / "rollouts")}
    config(folder, **{f"trainer__{name}": value for name, value in own.items()})
    return folder


def shown(*runs, **options):
    """The section with prompts of these runs; None if there is none."""
    sections = {section.name: section for section in build_sections(read_runs(runs, **options))}
    return sections.get("prompts")


def titles(section):
    return [entry.title for entry in section.entries]


def texts(entry):
    return [quote.text for column in entry.columns for quote in column.quotes]


# Which dumps are read


def test_a_run_without_stored_responses_has_no_such_section(tmp_path):
    assert shown(a_run(tmp_path)) is None


def test_steps_that_a_resume_discarded_are_left_out(tmp_path):
    run = a_run(tmp_path)
    rollouts(run, 2, {"kept": MIXED})
    rollouts(run, 3, {"discarded": MIXED})
    assert titles(shown(run)) == ["kept"]


def test_only_the_newest_steps_are_read_and_a_prompt_is_shown_as_of_its_last_visit(tmp_path):
    run = a_run(tmp_path, steps=range(1, 7))
    for step in range(1, 7):
        rollouts(run, step, {"again": MIXED, f"prompt of {step}": MIXED})
    section = shown(run)
    assert set(titles(section)) == {"again", *(f"prompt of {step}" for step in (3, 4, 5, 6))}
    assert "5 of 5 prompts" in section.text[0] and "steps 3, 4, 5, 6" in section.text[0]
    assert "step 6" in next(entry.note for entry in section.entries if entry.title == "again")


def test_no_more_bytes_are_read_than_the_limit_and_the_page_says_so(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    file = rollouts(run, 2, {"first": MIXED, "second": MIXED})
    rollouts(run, 1, {"older": MIXED})
    assert "in part" not in shown(run).text[0]
    monkeypatch.setattr(responses, "MOST_BYTES", file.stat().st_size // 2)
    section = shown(run)
    assert titles(section) == ["first"] and "step 2, read in part" in section.text[0]


@pytest.mark.parametrize("lines", [5, 6, 7])
def test_a_group_that_the_limit_cuts_is_left_out(tmp_path, monkeypatch, lines):
    """Half of its responses, for example the wrong ones, would be shown as all of them."""
    run = a_run(tmp_path)
    file = rollouts(run, 2, {"first": MIXED, "second": [0.0, 0.0, 1.0, 1.0]})
    content = file.read_bytes().splitlines(keepends=True)
    assert len(content) == 8
    monkeypatch.setattr(responses, "MOST_BYTES", len(b"".join(content[:lines])) - 1)
    assert titles(shown(run)) == ["first"]


def test_a_response_without_acc_counts_as_wrong_beside_one_that_has_it(tmp_path):
    run = a_run(tmp_path)
    file = rollouts(run, 2, {"some": [0.0, 1.0], "none": [0.0, 0.0]})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row | {"acc": 1.0 if row["score"] else None} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"trainer.default_local_dir": str(run), "trainer.rollout_data_dir": str(run / "rollouts")}
    stored = responses.ResponseReader(RunDirectory(run), responses.unknown_origin).read(own, [2], [])
    assert {group.prompt: group.values.tolist() for group in stored.groups} == {"some": [0, 1], "none": [0, 0]}


def test_responses_outside_the_run_are_read_only_if_the_user_made_the_run(tmp_path):
    run = a_run(tmp_path / "run", rollout_data_dir=tmp_path / "elsewhere")
    rollouts(tmp_path, 2, {"a private prompt": MIXED}, folder="elsewhere")
    assert shown(run) is None
    assert shown(run, distrust=lambda of: f"{of.path.name} is of somebody else") is None
    (reason,) = read_runs([run], distrust=lambda of: f"{of.path.name} is of somebody else")[0].skipped
    assert f"{tmp_path / 'elsewhere'}" in reason and "run is of somebody else" in reason
    assert titles(shown(run, distrust=lambda of: None)) == ["a private prompt"]
    done = CliRunner().invoke(app, ["report", str(run)], env={"COLUMNS": "300"})
    page = (run / "report.html").read_text()
    assert done.exit_code == 0 and "a private prompt" not in page
    assert "nothing shows that you started this run" in page


@pytest.mark.parametrize("link", ["rollouts", "rollouts/2.jsonl"])
def test_no_link_leads_to_responses_outside_the_run(tmp_path, link):
    run = a_run(tmp_path / "run")
    rollouts(tmp_path, 2, {"private": MIXED}, folder="private")
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(tmp_path / "private" / link.removeprefix("rollouts").removeprefix("/"))
    assert shown(run) is None
    assert any("link" in reason or "outside the run" in reason for reason in read_runs([run])[0].skipped)


def test_responses_are_found_in_a_run_that_was_moved(tmp_path):
    run = a_run(tmp_path / "before")
    rollouts(run, 2, {"moved": MIXED})
    assert titles(shown(run.rename(tmp_path / "after"))) == ["moved"]


def test_a_damaged_dump_is_left_out_and_named(tmp_path):
    run = a_run(tmp_path)
    rollouts(run, 1, {"whole": MIXED})
    file = rollouts(run, 2, {"damaged": MIXED})
    file.write_text("not json\n" + file.read_text())
    assert titles(shown(run)) == ["whole"]
    assert any("2.jsonl, line 1" in reason for reason in read_runs([run])[0].skipped)


@pytest.mark.parametrize("place", ["rollouts/2.jsonl", "x" * 300])
def test_a_folder_of_dumps_that_cannot_be_read_is_named(tmp_path, place):
    run = a_run(tmp_path / "run", rollout_data_dir=None if "/" in place else tmp_path / place)
    (run / "rollouts").mkdir()
    (run / "rollouts" / "2.jsonl").symlink_to(tmp_path / "nothing")
    assert shown(run) is None
    (reason,) = read_runs([run])[0].skipped
    assert place in reason and "cannot be read" in reason


def test_values_that_are_no_numbers_and_texts_that_are_none_are_shown(tmp_path):
    run = a_run(tmp_path)
    rollouts(run, 2, {"p": [0, 1, 1]})
    lines = [json.loads(line) for line in (run / "rollouts" / "2.jsonl").read_text().splitlines()]
    lines[0] |= {"acc": "no number"}
    lines[1] |= {"acc": math.inf, "output": None, "gts": ["a", {"b": 1}]}
    (run / "rollouts" / "2.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = shown(run).entries
    assert sorted(quote.title for entry in entries for column in entry.columns for quote in column.quotes) == [
        *("score 1", "score nan", "score nan")
    ]


def test_unchanged_dumps_are_not_read_again(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    rollouts(run, 2, {"first": MIXED})
    readers, reads = {}, []
    monkeypatch.setattr(
        responses, "dump_rows", lambda *a, real=responses.dump_rows, **k: reads.append(a) or real(*a, **k)
    )
    assert titles(shown(run, readers=readers)) == titles(shown(run, readers=readers)) == ["first"]
    assert len(reads) == 1
    rollouts(run, 1, {"other": MIXED})
    assert set(titles(shown(run, readers=readers))) == {"first", "other"}


# Which prompts are shown, and how much of them


def test_prompts_are_ordered_by_disagreement_and_some_agree(tmp_path):
    run = a_run(tmp_path)
    mixed = {f"mixed {right}": [1] * right + [0] * (8 - right) for right in range(1, 8)}
    silent = {f"wrong {number}": WRONG for number in range(20)} | {f"right {number}": RIGHT for number in range(20)}
    rollouts(run, 2, silent | mixed)
    shown_titles = titles(shown(run))
    assert len(shown_titles) == prompts.MOST_PROMPTS and "20 of 47 prompts" in shown(run).text[0]
    assert shown_titles[0] == "mixed 4" and set(shown_titles[1:3]) == {"mixed 3", "mixed 5"}
    assert [title.split()[0] for title in shown_titles[7:]] == ["wrong"] * 7 + ["right"] * 6


def test_few_responses_of_a_prompt_are_shown_and_long_texts_are_cut_in_the_middle(tmp_path):
    run = a_run(tmp_path)
    rollouts(run, 2, {"p" * 5000: [0.0] * 30 + [0.5] + [1.0] * 30}, text="start" + "x" * 5000 + "end")
    (entry,) = shown(run).entries
    assert len(texts(entry)) == prompts.MOST_RESPONSES
    assert [quote.title for quote in entry.columns[0].quotes] == [
        *("score 1, 8 of 61", "score 1", "score 1", "score 1", "score 0", "score 0", "score 0", "score 0")
    ]
    assert "scores 0 to 1, mean 0.5" in entry.note
    assert texts(entry)[0].startswith("start") and re.search(r"xend\d+$", texts(entry)[0])
    assert "characters left out" in texts(entry)[0]
    assert max(map(len, [entry.text, *texts(entry)])) < prompts.MOST_CHARACTERS + 100


def test_the_page_of_long_responses_stays_small(tmp_path):
    """64 MB of responses that need escaping; the library that draws charts has 0.9 MB."""
    run = a_run(tmp_path, steps=(1, 2, 3, 4))
    for step in (1, 2, 3, 4):
        rollouts(run, step, {f"{step} {number}": MIXED for number in range(50)}, text="<&>\"'" * 16_000)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.output
    assert (run / "report.html").stat().st_size < 2_500_000


def test_responses_of_several_runs_to_a_prompt_are_side_by_side(tmp_path):
    runs = [a_run(tmp_path / name) for name in "abc"]
    rollouts(runs[0], 2, {"of both": MIXED, "of a": MIXED})
    rollouts(runs[1], 2, {"of b": [0, 0, 1, 1], "of both": WRONG})
    section = shown(*runs)
    assert titles(section) == ["of both", "of b", "of a"], "those that several runs visited come first"
    assert [column.title for column in section.entries[0].columns] == ["a", "b"]
    assert section.entries[0].note == "a: step 2, 3 of 4 right; b: step 2, 0 of 4 right"
    assert "step 2 of a; step 2 of b" in section.text[0]


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("system\nBe brief.\nuser\nWhat is 1 + 2?\nassistant\n", "system Be brief. user What is 1 + 2?"),
        ("<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>user How?"),
        ("word " * 100, "…" + ("word " * 100).strip()[-100:]),
        ("assistant\n", "assistant\n"),
    ],
)
def test_an_entry_is_named_by_the_end_of_its_prompt(tmp_path, prompt, title):
    run = a_run(tmp_path)
    rollouts(run, 2, {prompt: MIXED})
    assert titles(shown(run)) == [title]


def test_texts_are_escaped(tmp_path):
    run = a_run(tmp_path)
    rollouts(run, 2, {HOSTILE: MIXED}, text=f"{HOSTILE}\x1b[31m\u202e")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    page = (run / "report.html").read_text()
    assert "<img src=x" not in page and page.count("&lt;img src=x onerror=&#39;window.hostile = 1&#39;&gt;") >= 5
    assert "\x1b" not in page and "\u202e" not in page


# Settings


def test_settings_that_differ_between_runs_are_listed(tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.2)):
        run = a_run(tmp_path / name)
        keys = {"data__seed": 1, "actor__lr": rate, "trainer__experiment_name": name, "trainer__x_data_dir": name}
        keys |= {f"rollout__trace__{key}": name for key in ("project_name", "experiment_name")}
        config(run, **keys, **({"reward__extra": True} if name == "b" else {}))
    metrics(tmp_path / "c", [(1, {"actor/entropy": 1.0})])
    sections = {s.name: s for s in build_sections(read_runs([tmp_path / name for name in "abc"]))}
    table = sections["settings"].table
    assert table.header == ("setting", "a", "b")
    assert table.rows == [("actor.lr", "0.1", "0.2"), ("reward.extra", "-", "true")]
    assert any("settings of c are unknown" in text for text in sections["settings"].text)
    alone = [section.name for section in build_sections(read_runs([tmp_path / "a"]))]
    assert "settings" not in alone


def test_secrets_and_long_values_are_not_shown_and_long_tables_are_cut(tmp_path):
    for name in "ab":
        many = {f"many__key_{number:02}": name for number in range(60)}
        secret = {"judge__api_key": f"secret {name}", "a__url": f"https://me:pw{name}@host", "b__text": name * 500}
        secret |= {"ray__env_vars__TOKEN": f"secret {name}"}
        config(a_run(tmp_path / name), **secret, **many)
    (section,) = (s for s in build_sections(read_runs([tmp_path / "a", tmp_path / "b"])) if s.name == "settings")
    rows = {row[0]: row[1:] for row in section.table.rows}
    assert rows["judge.api_key"] == rows["a.url"] == ("(not shown)", "(not shown)")
    assert max(map(len, rows["b.text"])) < 100 and not any("env_vars" in key for key in rows)
    assert len(rows) == 40 and "40 of 63" in " ".join(section.text)


# The headline


def headline(*runs):
    (section,) = (section for section in build_sections(read_runs(runs)) if section.name == "headline")
    return section.figures


def test_the_headline_has_accuracy_silence_tokens_and_time(tmp_path):
    for step in (1, 2):
        records(tmp_path, step, (group(MIXED, tokens=500_000), "trained"), (group(WRONG, tokens=250_000), "trained"))
    accuracy = "val-core/math/acc/mean@1"
    metrics(
        tmp_path,
        [(0, {"validation": 1, accuracy: 0.25}), *((n, {accuracy: 0.5, "timing_s/step": 5400}) for n in (1, 2))],
    )
    (row,) = headline(tmp_path)
    assert [(figure.name, figure.value, figure.note) for figure in row.figures] == [
        ("held-out accuracy", "25% to 50%", "math, steps 0 and 2"),
        ("silent groups", "50%", "of all 4 groups teach nothing"),
        ("tokens generated", "6 million", "16 rollouts"),
        ("time", "3.0 hours", "2 training steps"),
    ]
    assert row.title == ""


@pytest.mark.parametrize(
    ("tokens", "amount"),
    [(999_400, "999,400"), (999_600, "1 million"), (999_499_999, "999 million"), (999_500_001, "1 billion")],
)
def test_an_amount_is_rounded_before_its_word_is_chosen(tmp_path, tokens, amount):
    records(tmp_path, 1, (group([1.0], tokens=tokens), "trained"))
    (row,) = headline(tmp_path)
    assert next(figure.value for figure in row.figures if figure.name == "tokens generated") == amount


def test_the_headline_is_of_what_a_run_has(tmp_path):
    sources = {f"val-core/{name}/acc/mean@1": value for name, value in (("a", 0.2), ("b", 0.6))}
    metrics(tmp_path / "two", [(step, sources | {"timing_s/step": 20.0}) for step in (1, 2, 3)])
    metrics(tmp_path / "score", [(step, {"critic/score/mean": step / 4}) for step in (1, 2)])
    metrics(tmp_path / "nothing", [(1, {"actor/entropy": 1.0})])
    records(tmp_path / "rollouts", 1, (MIXED, "trained"))
    rows = headline(*(tmp_path / name for name in ("two", "score", "nothing", "rollouts")))
    assert [row.title for row in rows] == ["two", "score", "nothing", "rollouts"]
    first = [(row.figures[0].name, row.figures[0].value) for row in rows]
    assert first == [
        ("held-out accuracy", "40% to 40%"),
        ("mean reward", "0.25 to 0.5"),
        ("mean reward", "-"),
        ("accuracy of rollouts, mean over prompts", "75%"),
    ]
    assert rows[0].figures[0].note == "mean of 2 data sources, steps 1 and 3"
    assert rows[0].figures[-1].value == "1.0 minutes"


def test_the_sample_run_has_all_of_them(tmp_path):
    sections = {section.name for section in build_sections(read_runs([everything(tmp_path / "run")]))}
    assert {"headline", "prompts"} <= sections
