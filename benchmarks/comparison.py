"""Six algorithms over five seeds on the embedded task, on the real stack: hours of runs, one after another, resumable.

    .venv/bin/python benchmarks/comparison.py RUNS [--seeds 1,2,3,4,5] [--have benchmarks/results/comparison.json]
    .venv/bin/verl-gsd compare RUNS/*/seed_* --baseline grpo --output benchmarks/results/comparison.json

Forty steps each, held-out accuracy after every tenth, some seven minutes a run on two cores. DAPO, which generates 2.7
times as much a step, makes twenty and is looked at after every fifth. Seeds are the outer loop,
so that what is there when the script is stopped compares the algorithms on the same seeds. The same line goes on: a run
that has its last step is left alone, one that was broken off is resumed from its last checkpoint. One that fails is
said, and tried again by the next call. Runs that are known by their curves alone, from a comparison of another day that
`--have` names, are not made again: `compare` takes that file beside the folders.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from verl_gsd.compare.comparison_file import read_curves
from verl_gsd.jobs.submission import SEED_KEYS
from verl_gsd.rundir import RunDirectory, read_metrics

STEPS = 40
#: The words that choose each, and override the common ones; the judge is the stub, which measures closeness to the
#: reference answer.
ALGORITHMS = {
    "grpo": ("algo=grpo",),
    "dr_grpo": ("algo=dr_grpo",),
    "dapo": ("algo=dapo", "trainer.total_training_steps=20", "trainer.test_freq=5"),
    "hadw": ("algo=hadw", "algorithm.gsd.hadw.preset=hard"),  # the anchor of the runs in results/comparison.json
    "dagrpo_mask": ("algo=dagrpo_mask", "algorithm.gsd.dagrpo.judge.scorer=stub"),
    "gvpo": ("algo=gvpo",),
}
COMMON = (
    "task=arithmetic",
    "hardware=cpu",
    f"trainer.total_training_steps={STEPS}",
    "trainer.test_freq=10",
    "trainer.val_before_train=false",  # all begin with the same weights
    "trainer.max_actor_ckpt_to_keep=1",
)


def is_done(run: Path, words: tuple[str, ...]) -> bool:
    """Whether the last step and the validation after it are in the run's metrics."""
    layout, total = RunDirectory(run), "trainer.total_training_steps="
    (last, *_) = [int(word.removeprefix(total)) for word in words if word.startswith(total)] or [STEPS]
    return any(
        step >= last and any(name.startswith("val-core/") for name in scalars)
        for attempt in layout.attempts()
        for step, scalars in read_metrics(layout.metrics(attempt))
    )


def train(run: Path, words: tuple[str, ...], seed: int) -> int:
    """Begin ``run``, or go on with it; its exit status."""
    command = [str(Path(sys.executable).parent / "verl-gsd"), "train"]
    if RunDirectory(run).latest_checkpoint() is not None:
        return subprocess.run([*command, f"resume={run}"]).returncode
    if RunDirectory(run).is_used():  # broken off before its first checkpoint
        run.rename(run.with_name(f"broken_off_{len(list(run.parent.iterdir()))}_{run.name}"))
    seeds = [f"{key}={seed}" for key in SEED_KEYS]
    return subprocess.run([*command, *COMMON, *words, *seeds, f"trainer.default_local_dir={run}"]).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--have", type=Path, help="a comparison whose runs are not made again")
    arguments = parser.parse_args()
    had = {(curve.label, curve.seed) for curve in (read_curves(arguments.have) if arguments.have else [])}
    failed = []
    for seed in map(int, arguments.seeds.split(",")):
        for name, words in ALGORITHMS.items():
            run = arguments.runs / name / f"seed_{seed}"
            if (name, seed) in had or is_done(run, words):
                continue
            if train(run.resolve(), words, seed):
                failed.append(run)
    print("\n".join(f"failed: {run}" for run in failed) or "all runs are there")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
