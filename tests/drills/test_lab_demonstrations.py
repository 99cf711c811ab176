"""What GVPO learns in the laboratory of prompts that it hardly ever solves, with and without demonstrations."""

import numpy as np
import pytest
from running import verl_gsd

from verl_gsd.rundir import RunDirectory, read_metrics

SEEDS = (1, 2, 3)
#: The levels of the task that the warm-started policy solves in about one of a hundred tries.
HARD = ("exact/level/mixed_3", "exact/level/mixed_4")


def rises(runs, algo):
    """(seeds,) by how much the exact accuracy on hard prompts rose."""
    done = verl_gsd(
        *("lab", "train", f"algo={algo}", "task=arithmetic"), *("--seeds", f"1..{len(SEEDS)}", "--runs", str(runs))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    for seed in SEEDS:
        metrics = dict(read_metrics(RunDirectory(runs / algo / f"seed_{seed}").metrics(1)))
        first, last = (np.mean([metrics[step][name] for name in HARD]) for step in (min(metrics), max(metrics)))
        assert first < 0.02
        found.append(last - first)
    return np.array(found)


@pytest.mark.minutes(6)
def test_with_demonstrations_gvpo_learns_more_of_prompts_that_are_hardly_ever_solved(tmp_path):
    without, shown = (rises(tmp_path, algo) for algo in ("gvpo", "gvpo_demonstrations"))
    assert (shown > 1.5 * without).all() and (without > 0).all(), (without, shown)
