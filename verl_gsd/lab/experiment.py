"""Everything that ``verl-gsd lab`` computes, in one call: runs of the chosen algorithms, and the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl_gsd.lab import published
from verl_gsd.lab.algorithms import algorithm, algorithms
from verl_gsd.lab.prompts import Prompts, starting_rates
from verl_gsd.lab.published import Figure
from verl_gsd.lab.simulation import SimulatedRun, first_update, simulate

#: The algorithms of the paper's controlled run, and how many seeds each of them is run with.
CONTROLLED, SEEDS = ("grpo", "dr_grpo", "dapo_redraw"), 3


@dataclass(frozen=True, eq=False)
class Results:
    """What the lab has computed.

    Attributes:
        runs: one run per algorithm, by name, in the order of ``names``, with seed ``seed``.
        first_updates: of the same algorithms, (P,) each, as ``simulation.first_update`` returns.
        tables: the paper's figures, by what they depend on.
    """

    prompts: Prompts
    n_prompts: int
    group_size: int
    steps: int
    seed: int
    runs: Mapping[str, SimulatedRun]
    first_updates: Mapping[str, np.ndarray]
    tables: Mapping[str, Sequence[Figure]]


def n_runs(names: Sequence[str]) -> int:
    """How many runs ``experiment`` makes."""
    return sum(SEEDS if name in CONTROLLED else 1 for name in names)


def experiment(
    prompts: Prompts,
    names: Sequence[str] | None = None,
    *,
    n_prompts: int = published.N_PROMPTS,
    group_size: int = published.GROUP_SIZE,
    steps: int = published.STEPS,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> Results:
    """Run algorithms. Those of the paper's controlled run are run with ``SEEDS`` seeds, from ``seed`` on.

    Args:
        names: of the algorithms. None: all of them.
        on_run: called with an algorithm's name after each of its runs.

    Raises:
        ValueError: there is no algorithm of a name (``algorithms.algorithm``), no solve rate lies between 0 and 1, or a
            number is too small (``simulation.simulate``).
    """
    chosen = {name: algorithm(name) for name in (algorithms() if names is None else names)}
    start = starting_rates(prompts, n_prompts)
    runs_by_name: dict[str, list[SimulatedRun]] = {}
    for name, row in chosen.items():
        for offset in range(SEEDS if name in CONTROLLED else 1):
            run = simulate(row, start, group_size=group_size, steps=steps, seed=seed + offset)
            runs_by_name.setdefault(name, []).append(run)
            on_run(name)
    controlled = {name: runs_by_name[name] for name in CONTROLLED if name in runs_by_name}
    tables = {
        "of the solve rate p and the group size G alone": published.figures_without_data(),
        "of the data set": published.figures_of_data(prompts),
        "of the controlled run": published.figures_of_controlled_run(
            start, controlled, group_size=group_size, steps=steps
        ),
    }
    first_runs = {name: runs[0] for name, runs in runs_by_name.items()}
    updates = {name: first_update(row, start, group_size=group_size, seed=seed) for name, row in chosen.items()}
    return Results(prompts, n_prompts, group_size, steps, seed, first_runs, updates, tables)
