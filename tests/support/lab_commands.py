"""Runs ``verl-gsd lab train`` several times in one fresh process, so that verl is imported once.

The process is fresh because the command forks its runs, and a fork of a process that has trained hangs in verl's
process group. ``python lab_commands.py FILE.json`` reads a list of ``[words, seed that fails or null]``.
"""

import json
import subprocess
import sys
from pathlib import Path


def run_all(commands, folder, env):
    """[(exit code, stdout, stderr)] of each command, run in ``folder``.

    Args:
        commands: (words after ``lab train``, the seed whose training fails or None) of each.
    """
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    words = [sys.executable, __file__, str(file)]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text()), printed


def _main(file):
    from typer.testing import CliRunner

    from verl_gsd.cli import lab_train
    from verl_gsd.cli.main import app
    from verl_gsd.lab.training import processes

    lab_train.make_task = lambda config: None  # the tests' task is smaller than the real one
    original = processes.train_config
    results = []
    for words, fails in json.loads(file.read_text()):

        def train_stub(config, on_step, fails=fails):
            if config.data.seed == fails:
                raise RuntimeError("the stage divided by zero")
            original(config, on_step)

        processes.train_runs.__kwdefaults__["train"] = train_stub
        done = CliRunner().invoke(app, ["lab", "train", *words], env={"COLUMNS": "200"})
        results.append((done.exit_code, done.stdout, done.stderr))
    file.with_name("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
