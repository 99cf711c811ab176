"""Running training on the real stack, for the tests that do."""

import json
import os
import subprocess
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from places import BINARIES

from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptStore
from verl_gsd.rundir import RunDirectory, read_metrics
from verl_gsd.state import check_state

TASK = Path(os.environ["VERL_GSD_CACHE"]) / "arithmetic"
#: The p below which a rise of held-out accuracy is one: about what two 95% intervals that lie apart stand for.
SURE = 0.005


class Started(subprocess.Popen):
    """A process for a ``with`` that kills it where the test fails in it, by its time limit too, and does not wait."""

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


def verl_gsd(*words, **kwargs):
    return subprocess.run([BINARIES / "verl-gsd", *words], capture_output=True, text=True, timeout=1800, **kwargs)


def train_until_killed(*words, step, **kwargs):
    """Kill the training process, as a machine short of memory would, in the step after ``step``: (code, printed)."""
    with Started(
        [BINARIES / "verl-gsd", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    ) as training:
        printed = ""
        for line in training.stdout:
            printed += line
            if line.startswith(f"step {step:4d}/"):
                (job,) = (p for p in psutil.Process(training.pid).children() if "verl_gsd.run.job" in p.cmdline())
                job.kill()
        return training.wait(), printed


def train_through(run, *words, last, killed_after=None, saved=None, resumed_with=(), between=lambda: None, **kwargs):
    """Train in the folder ``run`` to its step ``last``: in one go, or killed after a step and resumed from ``saved``.

    Args:
        resumed_with: words for the second attempt alone.
        between: called when the run has been killed, or has ended.

    Returns:
        {step: the attempt that counts}, and what was printed.
    """
    line = (*words, f"trainer.default_local_dir={run}", f"trainer.total_training_steps={last}")
    if killed_after is None:
        done = verl_gsd("train", *line, **kwargs)
        assert done.returncode == 0, done.stdout + done.stderr
        between()
        return dict.fromkeys(range(1, last + 1), 1), done.stdout + done.stderr
    code, printed = train_until_killed(*line, step=killed_after, **kwargs)
    assert code == 1, printed
    between()
    resumed = verl_gsd("train", f"resume={run}", *resumed_with, **kwargs)
    assert resumed.returncode == 0, printed + resumed.stdout + resumed.stderr
    return {step: 1 if step <= saved else 2 for step in range(1, last + 1)}, printed + resumed.stdout + resumed.stderr


def metrics(run, attempt):
    """The metrics of one attempt, by step."""
    return dict(read_metrics(RunDirectory(run).metrics(attempt)))


def course(run):
    """The first attempt's training as one line per step, for the message of a test that expected it to learn."""
    names = ("critic/rewards/mean", "actor/grad_norm", "actor/lr", "training/rollout_probs_diff_max")
    lines = [
        f"step {step}: " + ", ".join(f"{name} {values[name]:.5g}" for name in names if name in values)
        for step, values in metrics(run, 1).items()
    ]
    return "\n".join(lines)


def validated(run, step):
    """(Q,) mean scores of validation prompts after ``step``, always in one order; the run has ``validation_kept``."""
    scores = defaultdict(list)
    for row in map(json.loads, (run / "validation" / f"{step}.jsonl").read_text().splitlines()):
        scores[row["input"]].append(row["score"])
    return np.array([np.mean(of_prompt) for _, of_prompt in sorted(scores.items())])


def validation_kept(run):
    """The word with which verl writes what it validates on, for ``validated``."""
    return f"trainer.validation_data_dir={run}/validation"


def weights(checkpoint, rank_count):
    """Every shard of a checkpoint's model, as whole local tensors."""
    shards = []
    for rank in range(rank_count):
        file = checkpoint / "actor" / f"model_world_size_{rank_count}_rank_{rank}.pt"
        state = torch.load(file, weights_only=False)  # ours: written by the run above
        shards.append({name: getattr(value, "_local_tensor", value) for name, value in state.items()})
    return shards


def processes_with(variable, value):
    """Command lines of the living processes whose environment has ``variable=value``."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with suppress(psutil.Error):  # gone, or another user's
            if process.environ().get(variable) == value and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or ()))
    return found


def remembered(checkpoint):
    """The memory of prompts in a checkpoint: {(source, index): (visits, correct, total)}."""
    store = PromptStore()
    values, arrays = check_state(checkpoint, {})
    columns = {name.removeprefix("prompts/"): of for name, of in arrays.items() if name.startswith("prompts/")}
    store.load_state_dict(values["prompts"] | columns)
    state = store.state_dict()
    keys = [(state["sources"][source], index) for source, index in zip(state["source"], state["index"], strict=True)]
    return dict(zip(keys, zip(state["visits"], state["correct"], state["total"], strict=True), strict=True))


def replayed(records, last_step):
    """The same, from the records of all steps up to ``last_step``."""
    memory = defaultdict(lambda: (0, 0.0, 0))
    for row in records.to_pylist():
        if row["step"] <= last_step and row["total"]:
            key = (row["data_source"], row["index"])
            memory[key] = tuple(np.add(memory[key], (1, row["correct"], row["total"])))
    return dict(memory)


def replayed_anchors(run, records, last_step, preset="soft"):
    """HA-DW's anchor after each step, from the recorded counts through a fresh ``Hadw``: bit for bit what the run had.

    Asserts that every group met the anchor of the step before, and that every checkpoint holds the anchor of its step.
    """
    fresh, path = Hadw({"preset": preset}), {}
    for step in range(1, last_step + 1):
        rows = [row for row in records.to_pylist() if row["step"] == step]
        assert {row["hadw_anchor"] for row in rows if row["total"]} == {fresh.bank.value("arithmetic")}
        fresh.end_step([_as_group(row) for row in rows])
        path[step] = fresh.bank.value("arithmetic")
        if (run / f"global_step_{step}" / "gsd").is_dir():
            saved, _ = check_state(run / f"global_step_{step}", {})
            assert saved["hadw"]["bank"] == fresh.state_dict()["bank"]
    return path


def _as_group(row):
    right = round(row["correct"])
    verdicts = np.array([1.0] * right + [0.0] * (row["total"] - right))
    tokens = np.zeros(row["total"], np.int64)
    return Group(str(row["index"]), row["data_source"], row["index"], verdicts, verdicts, tokens)
