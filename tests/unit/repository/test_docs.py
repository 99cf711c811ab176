"""What the documentation shows runs, and what it names is there."""

import dataclasses
import importlib.util
import re
import subprocess
import sys

import pytest
import third_party
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import extension, records

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/**/README.md"))]


@pytest.fixture
def stages_as_before(monkeypatch):
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))


def test_the_stage_of_the_page_on_extending_passes_its_own_test_in_forty_lines(stages_as_before):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)[:2]
    assert sum(block.count("\n") for block in blocks) <= 40
    there: dict = {}
    for block in blocks:
        exec(block, there)
    (test,) = (value for name, value in there.items() if name.startswith("test_"))
    test()
    for section, key in (({"limit": 0}, "limit=0"), ({"limt": 1}, "limt: .*limit"), ({}, "limit is missing")):
        with pytest.raises(ValueError, match=rf"algorithm\.gsd\.cap\.{key}"):
            extension.build({"cap": section})


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    text = text.replace("verl_gsd/recipes", "recipes")  # where a wheel has them
    named = set(re.findall(r"`((?:verl_gsd|recipes|docs|scripts|tests|benchmarks|docker)/[\w./-]+)`", text))
    named |= {f"{page.parent.relative_to(ROOT)}/{link}" for link in re.findall(r"\]\((?!http)([\w./-]+)\)", text)}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_on_records_has_every_column():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", (ROOT / "docs" / "records.md").read_text(), re.MULTILINE)
    assert rows == [(column.name, column.type, column.about) for column in records.columns()]


def test_the_declaration_of_the_page_on_extending_is_accepted(stages_as_before):
    exec(third_party.files()["trend/__init__.py"], {"__name__": "trend"})
    trend = extension.declared("trend")
    assert trend.histograms == {"trend_average": "trend_average"}
    assert [column.name for column in trend.record_columns] == ["trend_average", "trend_groups"]


def test_the_test_of_the_package_on_the_page_on_extending_passes(tmp_path):
    environment = third_party.install(tmp_path)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "trend"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_keys_of_the_page_on_switching_are_those_of_the_choices(compose_fast):
    """Against algo=grpo, every key that the table gives a value has it under the algo it stands for."""
    rows = {
        "dr_grpo": ("algorithm.gsd.alpha", "actor_rollout_ref.actor.loss_agg_mode"),
        "dapo": ("actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.clip_ratio_high"),
        "gspo": ("actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.clip_ratio_low"),
    }
    page = (ROOT / "docs" / "switching.md").read_text()
    for algo, keys in rows.items():
        config, _ = compose_fast(f"algo={algo}", "task=arithmetic", "hardware=cpu")
        (row,) = (line for line in page.splitlines() if line.lower().startswith(f"| {algo.replace('_', '. ')} |"))
        for key in keys:
            value = OmegaConf.select(config, key)
            short = key.replace("actor_rollout_ref.", "")
            (written,) = re.findall(re.escape(short) + r"=([\w.-]+)", row)
            assert str(value) == written or float(value) == float(written), (algo, key, value, written)


@pytest.fixture
def compatibility():
    specification = importlib.util.spec_from_file_location("compatibility", ROOT / "scripts" / "compatibility.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_table_of_what_works_with_what_is_what_the_extensions_declare(compatibility, stages_as_before):
    page = compatibility.PAGE.read_text(encoding="utf-8")
    assert compatibility.with_table(page) == page, "run python scripts/compatibility.py"
    conflict = extension.Conflict("algorithm.gsd.hadw", "both cap", "Leave one out.")
    budget = dataclasses.replace(extension.declared("budget"), conflicts=(conflict,))
    extension._DECLARED["budget"] = budget
    changed = compatibility.with_table(page)
    assert changed != page and "`algorithm.gsd.budget` with `algorithm.gsd.hadw`: both cap. Leave one out." in changed


def test_the_check_of_the_table_fails_where_the_page_is_old(compatibility, monkeypatch, tmp_path):
    page = tmp_path / "switching.md"
    monkeypatch.setattr(compatibility, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["compatibility.py", "--check"])
    page.write_text(f"before\n{compatibility.BEGIN}\nold\n{compatibility.END}\nafter\n")
    with pytest.raises(SystemExit, match=r"python scripts/compatibility\.py"):
        compatibility.main()
    monkeypatch.setattr("sys.argv", ["compatibility.py"])
    compatibility.main()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    monkeypatch.setattr("sys.argv", ["compatibility.py", "--check"])
    compatibility.main()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        compatibility.main()
