"""The commands of docs/lab.md, with its own idea, in the order of the page and with fewer seeds, steps and prompts."""

import os
import re
import subprocess
import sys

import pytest
from places import ROOT

TEXT = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
#: Without the two studies, which test_lab_studies.py runs.
COMMANDS = re.findall(r"^    ((?:verl-gsd (?:lab train|compare)|export) .*)$", TEXT, re.MULTILINE)
SMALL = (
    "trainer.total_training_steps=2 trainer.test_freq=2 data.train_batch_size=4 data.val_max_samples=16 "
    "trainer.default_local_dir=run"
)


def smaller(command):
    if not command.startswith("verl-gsd lab train"):
        return command
    words = SMALL if "--seeds" not in command else SMALL.rpartition(" ")[0]
    return f"{command.replace('--seeds 1..16', '--seeds 1..2')} {words}"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each command of the page printed, in a shell in which all of them succeeded."""
    folder = tmp_path_factory.mktemp("page")
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert block.count("\n") <= 40
    (folder / "rare.py").write_text(block)
    script = ["set -e", f'verl-gsd() {{ {sys.executable} -m verl_gsd.cli "$@"; }}']
    script += [line for command in COMMANDS for line in (smaller(command), "echo =====")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    text = "\n".join(script).replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}")
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=570
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(zip(COMMANDS, done.stdout.split("====="), strict=False)), folder


def test_the_commands_of_the_page_train_and_compare_what_it_says(printed):
    outputs, folder = printed
    assert len(COMMANDS) == 7
    assert (folder / "run" / "config.yaml").is_file()
    compared = [text for command, text in outputs.items() if command.startswith("verl-gsd compare")]
    assert len(compared) == 2 and "dr_grpo" in compared[0] and "rare" in compared[1]
    assert "Difference from grpo" in compared[0] and "Difference from grpo" in compared[1]


def test_the_idea_of_the_page_takes_part_in_its_runs(printed):
    _, folder = printed
    config = (folder / "runs" / "lab" / "rare" / "seed_1" / "config.yaml").read_text()
    assert re.search(r"rare:\n\s+strength: 1\.0", config)
    plain, weighed = (
        (folder / "runs" / "lab" / label / "seed_1" / "metrics" / "attempt_1.jsonl").read_text()
        for label in ("grpo", "rare")
    )
    grad_norm = re.compile(r'"actor/grad_norm": ([\d.]+)')
    assert grad_norm.findall(plain) != grad_norm.findall(weighed)
