"""What the documentation shows runs, and what it names is there."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
import third_party
import typer
from messages_of_code import HOLE, texts
from omegaconf import OmegaConf
from places import ROOT

from verl_gsd import config as groups
from verl_gsd import extension, records
from verl_gsd.cli.main import app

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("recipes/**/README.md"))]


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
def test_files_that_a_page_names_are_there(page, reference_pages):
    text = page.read_text(encoding="utf-8")
    text = text.replace("verl_gsd/recipes", "recipes")  # where a wheel has them
    named = set(re.findall(r"`((?:verl_gsd|recipes|docs|scripts|tests|benchmarks|docker)/[\w./-]+)`", text))
    linked = re.findall(r"\]\((?!http)([\w./-]+)(?:#[\w-]+)?\)", text)
    named |= {os.path.relpath(page.parent / link, ROOT) for link in linked}
    # Pages that a build of the site makes.
    made = {f"docs/{path}" for path in reference_pages.pages()}
    assert [name for name in named - made if not (ROOT / name).exists()] == []


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


def script(name):
    """A module of scripts/."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference_pages():
    return script("reference_pages")


def shown_commands(page):
    """The command lines of ``verl-gsd`` in the code blocks of a page, as words without remarks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fences = re.findall(r"^( *```(\w*).*?^ *```)", text, re.MULTILINE | re.DOTALL)
    for block, language in fences:
        text = text.replace(block, "")
        if language in ("", "bash", "sh"):
            text += "\n" + re.sub(r"^", "    ", block, flags=re.MULTILINE)
    for line in re.findall(r"^ {4,}(?:[A-Z_]+=\S+ |\S*/)*verl-gsd (.*)$", text, re.MULTILINE):
        yield [word for word in shlex.split(line.partition(" #")[0].replace("[", "").replace("]", "")) if word != "..."]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_a_page_have_these_names_options_and_choices(page):
    root = typer.main.get_command(app)
    context = root.context_class(root, info_name="verl-gsd")
    for words in shown_commands(page):
        command = root
        while hasattr(command, "list_commands") and words and command.get_command(context, words[0]) is not None:
            command = command.get_command(context, words.pop(0))
        has_option = words[:1] and words[0].startswith("--")  # of verl-gsd itself
        assert command is not root or has_option, f"there is no command {words[:1]}"
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert [word for word in words if word[:2] == "--" and word.partition("=")[0] not in options] == [], words
        for group, _, choice in (word.partition("=") for word in words):
            if group in groups.GROUPS and not re.search(r"[A-Z]", choice.partition("/")[0]):
                assert choice in groups.choices(group), words


def test_wrong_command_lines_of_a_page_are_found(tmp_path):
    page = tmp_path / "page.md"
    wrong = ("verl-gsd trian algo=grpo", "verl-gsd report RUN --pgn FOLDER", "verl-gsd train algo=grop")
    for line in (*wrong, "verl-gsd --instal-completion"):
        page.write_text(f"Text.\n\n    {line}    # a remark\n")
        with pytest.raises(AssertionError):
            test_commands_of_a_page_have_these_names_options_and_choices(page)
    inside, indented = "verl-gsd report RUN --png FOLDER", "A=1 .venv/bin/verl-gsd train algo=grpo \\\n  --dry-run"
    page.write_text(f"Text.\n\n```bash\n{inside}\n```\n\n    {indented}\n")
    assert list(shown_commands(page)) == [["train", "algo=grpo", "--dry-run"], ["report", "RUN", "--png", "FOLDER"]]
    test_commands_of_a_page_have_these_names_options_and_choices(page)


@pytest.fixture
def compatibility():
    return script("compatibility")


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


#: Parts of names of metrics: those of verl and of other tools are not ours to explain.
OUR_METRICS = (
    *("budget", "dagrpo", "dial", "draw", "exact", "group", "gvpo", "hadw", "judge", "prompts", "reward", "sampler"),
    *("silent_groups", "val", "verifier"),
)


def with_alternatives(name):
    """``a/{b,c}`` as ``a/b`` and ``a/c``."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", name)
    if found is None:
        return [name]
    before, after = name[: found.start()], name[found.end() :]
    return [one for part in found[1].split(",") for one in with_alternatives(before + part + after)]


def test_every_metric_of_the_code_is_on_a_page():
    """A table of a recipe has the names without the section that its metrics share: ``mse`` for ``gvpo/mse``."""
    named, short = set(), {}
    for page in PAGES:
        code = {one for text in re.findall(r"`([^`\n]+)`", page.read_text()) for one in with_alternatives(text)}
        named |= code
        if page.parent.parent.name == "recipes":
            short[page.parent.name] = code
    short["judge"] = short["dagrpo"]
    metrics = re.compile(rf"(?:{'|'.join(OUR_METRICS)})/[\w{HOLE}/@]+(?<!/)")
    ours = {of.text for of in texts() if metrics.fullmatch(of.text)}
    assert len(ours) > 80
    missing = []
    for name in sorted(ours):
        section, _, rest = name.partition("/")
        places = [(name, named), *((tail, short.get(section, set())) for tail in (rest, rest.rpartition("/")[2]))]
        patterns = [(re.escape(text).replace(re.escape(HOLE), r"[\w@/]+"), place) for text, place in places]
        if not any(re.fullmatch(pattern, one) for pattern, place in patterns for one in place):
            missing.append(name)
    assert missing == []


def test_the_reward_function_of_the_page_on_verifying_returns_what_the_page_says():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "verify.md").read_text(), re.DOTALL)
    there: dict = {}
    exec(block, there)
    score = there["compute_score"]
    assert score("mine", "Two and two.\n4\n", "4") == {"score": 1.0, "acc": 1.0}
    assert score("mine", "x" * 5000 + "\n4", "4") == {"score": 0.9, "acc": 1.0}
    assert score("mine", "", "4", extra_info={"index": 1}) == {"score": 0.0, "acc": 0.0}
