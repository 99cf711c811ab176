"""The commands of the laptop tutorial, run as they stand there, lead to what the page says."""

import os
import re
import shlex
import subprocess

import pytest
from places import BINARIES, ROOT

PAGE = ROOT / "docs" / "start" / "laptop.md"
#: Differences between machines change the last digits of a run, and runs that differ early can part.
TOLERANCE = 0.03


@pytest.mark.minutes(8)
def test_the_tutorial_leads_where_it_says(tmp_path):
    text = PAGE.read_text()
    commands = re.findall(r"^    (verl-gsd .*)$", text, flags=re.MULTILINE)
    assert len(commands) == 4
    outputs = []
    for command in commands:
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "COLUMNS": "250"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f"{shlex.join([command])}\n{ran.stderr[-2000:]}"
        outputs.append(ran.stdout + ran.stderr)
    small, report, dynamic, compared = outputs

    stated = [float(value) for value in re.findall(r"accuracy, exact, .* -> (0\.\d+)", text)]
    found = [float(re.search(r"accuracy, exact, .* -> (0\.\d+)", output)[1]) for output in (small, dynamic)]
    assert found == pytest.approx(stated, abs=TOLERANCE)
    assert found[1] > found[0], "per step, dynamic sampling is better"

    (silent,) = re.findall(r"- (\d+)% of the groups are silent", text)
    assert abs(int(re.search(r"- (\d+)% of the groups are silent", report)[1]) - int(silent)) <= 5
    page = (tmp_path / "runs/lab/small_groups/seed_1/report.html").read_text()
    for suggestion in ("algorithm.filter_groups.metric=acc", "actor_rollout_ref.rollout.n=8", "sampler=disagreement"):
        assert suggestion in text and suggestion in page

    row = next(line for line in compared.splitlines() if line.startswith("│ dynamic") and "worse" in line)
    difference, low, high = map(float, re.search(r"([-+]0\.\d+) \[([-+]0\.\d+), ([-+]0\.\d+)\]", row).groups())
    assert difference == pytest.approx(float(re.search(r"\| (-0\.\d+) \[", text)[1]), abs=TOLERANCE)
    assert low < high < 0, "per token, it is worse"
