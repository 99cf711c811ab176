"""All of a lab in one call: runs of the algorithms asked for, and the paper's figures beside those found here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl_gsd.lab import published
from verl_gsd.lab.algorithms import ALGORITHMS, algorithm
from verl_gsd.lab.prompts import Prompts, starting_rates
from verl_gsd.lab.published import Figure
from verl_gsd.lab.simulation import Run, first_update, simulate

#: Algorithms of the paper's controlled run, and the seeds each is run with.
CONTROLLED, SEEDS = ("grpo", "dr_grpo", "dapo_redraw"), 3


@dataclass(frozen=True, eq=False)
class Results:
    """What a lab found.

    Attributes:
        runs: one an algorithm, by name, in the order asked for, with seed ``seed``.
        first_updates: of the same algorithms, (P,), see ``simulation.first_update``.
        tables: the paper's figures, by what they depend on.
    """

    prompts: Prompts
    n_prompts: int
    group_size: int
    steps: int
    seed: int
    runs: Mapping[str, Run]
    first_updates: Mapping[str, np.ndarray]
    tables: Mapping[str, Sequence[Figure]]


def n_runs(names: Sequence[str]) -> int:
    """Runs that ``experiment`` makes."""
    return sum(SEEDS if name in CONTROLLED else 1 for name in names)


def experiment(
    prompts: Prompts,
    names: Sequence[str] = tuple(ALGORITHMS),
    *,
    n_prompts: int = published.N_PROMPTS,
    group_size: int = published.GROUP_SIZE,
    steps: int = published.STEPS,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> Results:
    """Run the algorithms of these names; those of the paper's controlled run with ``SEEDS`` seeds, from ``seed`` on.

    Args:
        on_run: called with an algorithm's name after each of its runs.

    Raises:
        ValueError: a name is none (``algorithms.algorithm``), no solve rate lies between 0 and 1, or a number is too
            small (``simulation.simulate``).
    """
    chosen = {name: algorithm(name) for name in names}
    start = starting_rates(prompts, n_prompts)
    by_seed: dict[str, list[Run]] = {}
    for name, one in chosen.items():
        for further in range(SEEDS if name in CONTROLLED else 1):
            run = simulate(one, start, group_size=group_size, steps=steps, seed=seed + further)
            by_seed.setdefault(name, []).append(run)
            on_run(name)
    controlled = {name: by_seed[name] for name in CONTROLLED if name in by_seed}
    tables = {
        "of p and G alone": published.of_no_data(),
        "of the data set": published.of_data(prompts),
        "of the controlled run": published.of_controlled_run(start, controlled, group_size=group_size, steps=steps),
    }
    first = {name: runs[0] for name, runs in by_seed.items()}
    updates = {name: first_update(one, start, group_size=group_size, seed=seed) for name, one in chosen.items()}
    return Results(prompts, n_prompts, group_size, steps, seed, first, updates, tables)
