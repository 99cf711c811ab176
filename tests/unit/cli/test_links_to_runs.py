"""A run that another user offers may be a link to a private run of this user: no command reads through it."""

import json
import os
import re

import pytest
import yaml
from checkpoint_files import write_checkpoint
from comparison_runs import write_run
from evaluation_runs import prepared_sums
from report_runs import everything
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.report.watch import PageCache
from verl_gsd.run import trust

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")

#: Commands that only read, which the run below satisfies. RUN stands for the path of the run.
READING = [
    "report RUN --output page.html",
    "compare RUN",
    "compare mine=RUN",
    "compare base/seed_1 RUN",
    "audit-bias RUN",
    "plan --solve-rates RUN/rollouts",
    "verify RUN",
    "verify RUN/rollouts/1.jsonl",
]
OTHERS = [
    "report base/seed_1 RUN --watch --port 0",
    "lab --solve-rates RUN/rollouts",
    "export RUN model",
    "export RUN/global_step_4 model",
    "export RUN model --trust",
    "eval --bench mini --data data --checkpoint RUN/global_step_4",
    "eval --bench mini --data data --checkpoint RUN/global_step_4 --output output",
    "eval --bench mini --data data --checkpoint a/b --against RUN/global_step_4",
    "eval --bench mini --data data --checkpoint a/b --against RUN/evaluation/global_step_4",
    "train resume=RUN --dry-run",
    "train resume=RUN/global_step_4 --dry-run",
    "train resume=RUN trust=RUN --dry-run",
]


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A run of this user with all that the commands above read."""
    run = write_run(tmp_path / "private" / "seed_1", [10] * 4, {0: 0.0, 4: 0.4}, total=4)
    write_run(tmp_path / "base" / "seed_1", [10] * 4, {0: 0.0, 4: 0.4}, total=4)
    prepared_sums(tmp_path)
    write_checkpoint(run, 4)
    (run / "overrides.yaml").write_text(yaml.safe_dump(["algo=grpo", "task=arithmetic", "hardware=cpu"]))
    (run / "evaluation" / "global_step_4" / "mini").mkdir(parents=True)
    (run / "evaluation" / "global_step_4" / "mini" / "result.json").write_text("{}")
    (run / "rollouts").mkdir()
    line = {"input": "1 + 1?", "output": "\\boxed{2}", "gts": "2", "score": 1.0, "step": 1, "uid": "a_0_0"}
    (run / "rollouts" / "1.jsonl").write_text(json.dumps(line) + "\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config.setdefault("trainer", {})["rollout_data_dir"] = str(run / "rollouts")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def offered(private, tmp_path):
    """A link to that run in a folder that others can write."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    link = tmp_path / "shared" / "seed_1"
    link.symlink_to(private)
    return link


def invoke(line, run):
    words = [word.replace("RUN", str(run)) for word in line.split()]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    return done.exit_code, re.sub(r"\s+", " ", done.output)


@pytest.mark.parametrize("line", [*READING, *OTHERS])
def test_a_link_that_another_user_could_have_made_is_not_followed(line, offered, private, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, output = invoke(line, offered)
    assert code == 2, output
    owner = f"the link {offered} belongs to user id {os.geteuid()}"
    problem = f"{owner}, and other users can write {offered.parent} (mode 0777)"
    assert re.search(f"{offered}[^ ]*: it leads to ({private}[^ ]*), and another user could have chosen that: ", output)
    assert f"{problem}. It was not read. Use {private}" in output
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize("line", READING)
def test_a_link_that_nobody_else_can_replace_is_followed(line, offered):
    offered.parent.chmod(0o755)
    code, output = invoke(line, offered)
    assert code == 0, output


@as_root
def test_the_link_of_another_user_in_a_sticky_folder_is_not_followed(offered):
    offered.parent.chmod(0o1777)
    assert invoke("compare RUN", offered)[0] == 0
    os.chown(offered, NOBODY, -1, follow_symlinks=False)
    code, output = invoke("compare RUN", offered)
    assert code == 2 and f"the link {offered} belongs to user id {NOBODY}. It was not read" in output


def test_a_circle_of_links_ends_in_a_message(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    code, output = invoke("report RUN", tmp_path / "loop")
    assert code == 2 and f"{tmp_path}/loop: cannot be examined: Too many levels of symbolic links" in output


def test_a_checkpoint_for_a_new_run_is_not_taken_through_the_link_of_another_user(offered, private):
    checkpoint = offered / "global_step_4"
    with pytest.raises(ConfigError, match=f"the link {offered} belongs to .* Use {private}/global_step_4 instead"):
        trust.check_checkpoint(checkpoint)
    offered.parent.chmod(0o755)
    assert trust.check_checkpoint(checkpoint) == private / "global_step_4"


def test_a_page_that_is_watched_does_not_show_a_run_by_which_the_folder_is_replaced(tmp_path):
    """The page is rebuilt for hours, and every user of the machine can open it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    run = tmp_path / "shared" / "run"
    everything(run, steps=2, source="offered_source")
    everything(tmp_path / "private", steps=3, source="secret_source")
    cache = PageCache([run])
    assert b"offered_source" in cache.page()
    run.rename(tmp_path / "before")
    run.symlink_to(tmp_path / "private")
    page = cache.page()
    assert b"secret_source" not in page and f"the link {run} belongs to user id".encode() in page
