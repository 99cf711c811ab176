"""Published figures of arXiv 2607.00152, and the same figures recomputed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verl_gsd import planning
from verl_gsd.groups import group_stats
from verl_gsd.lab.prompts import Prompts
from verl_gsd.lab.simulation import SimulatedRun

#: Settings of the paper's controlled run. Its figures are compared only with runs of these settings.
GROUP_SIZE, STEPS, N_PROMPTS = 8, 150, 6000

#: By solve rate, for fidelities of 90%, 95% and 99%: the smallest group size, and the one that the law
#: 1/(8 eps p (1-p)) gives.
_SIZES = {0.5: (7, 11, 51), 0.3: (9, 14, 61), 0.1: (22, 36, 144), 0.05: (42, 69, 273)}
_LAW = {0.5: (5, 10, 50), 0.3: (6, 12, 60), 0.1: (14, 28, 139), 0.05: (26, 53, 263)}
_TOLERANCES = (0.1, 0.05, 0.01)
_SIGMA = {1: 0.3307, 2: 0.4330, 3: 0.4841, 4: 0.5}
_FIDELITY = {0.5: 0.9278, 0.05: 0.5390}
_SILENT = {0.5: 0.0078, 0.25: 0.1001, 0.05: 0.6634}
#: Big-Math, in percent: silent groups by group size as (plug-in, unbiased), gradient mass by alpha as (ends, middle).
_BIG_MATH_SILENT = {4: (59.27, 58.59), 8: (44.28, 43.07), 16: (32.24, 30.19), 32: (23.01, 19.64), 64: (16.53, 11.18)}
_BIG_MATH_MASS = {0: (13.9, 22.8), 1: (24.7, 17.5)}
_NAMES = {0: "Dr. GRPO", 1: "GRPO"}


@dataclass(frozen=True)
class Figure:
    """One figure of the paper.

    Attributes:
        recomputed: None if it cannot be computed; ``note`` then has the reason.
        decimals: of the published figure.
        comparable: whether both figures are of the same settings.
    """

    quantity: str
    published: float
    recomputed: float | None
    decimals: int
    note: str = ""
    comparable: bool = True

    @property
    def difference(self) -> float | None:
        """Recomputed minus published, both rounded as they are shown; None if they cannot be compared."""
        if self.recomputed is None or not self.comparable:
            return None
        return round(round(self.recomputed, self.decimals) - self.published, self.decimals)


def figures_without_data() -> list[Figure]:
    """Figures that follow from p and G alone. Published and recomputed must agree."""
    figures = []
    for p, sizes in _SIZES.items():
        for tolerance, size, law in zip(_TOLERANCES, sizes, _LAW[p], strict=True):
            setting = f"p = {p:g}, fidelity {1 - tolerance:.0%}"
            figures.append(Figure(f"smallest G, {setting}", size, float(planning.required_group_size(p, tolerance)), 0))
            figures.append(Figure(f"G by the law, {setting}", law, 1 / (8 * tolerance * p * (1 - p)), 0))
    for k, sigma in _SIGMA.items():
        rewards = torch.tensor([1.0] * k + [0.0] * (8 - k), dtype=torch.float64)
        figures.append(Figure(f"sigma, {k} of 8 right", sigma, float(group_stats(rewards, [0] * 8).std[0]), 4))
    for p, fidelity in _FIDELITY.items():
        figures.append(Figure(f"fidelity, G = 8, p = {p:g}", fidelity, float(planning.fidelity(p, 8)), 4))
    for p, silent in _SILENT.items():
        figures.append(Figure(f"silent rate, G = 8, p = {p:g}", silent, float(planning.silent_rate(p, 8)), 4))
    return figures


def figures_of_data(prompts: Prompts) -> list[Figure]:
    """Figures that the paper has of Big-Math, recomputed from ``prompts``, in percent."""
    p = prompts.rate
    figures = [
        Figure("never solved, %", 4.0, 100 * float((p == 0).mean()), 1),
        Figure("always solved, %", 7.2, 100 * float((p == 1).mean()), 1),
    ]
    for size, (plug_in, unbiased) in _BIG_MATH_SILENT.items():
        silent = 100 * float(np.mean(planning.silent_rate(p, size)))
        figures.append(Figure(f"silent groups, G = {size}, plug-in, %", plug_in, silent, 2))
        figures.append(_unbiased(prompts, size, unbiased))
    for alpha, (ends, middle) in _BIG_MATH_MASS.items():
        mass = (p * (1 - p)) ** (1 - alpha / 2)  # of a large group, as in the paper
        shares = _shares(mass, {"below 0.1 or above 0.9": (p < 0.1) | (p > 0.9), "0.4 to 0.6": (p >= 0.4) & (p <= 0.6)})
        for (where, share), published in zip(shares.items(), (ends, middle), strict=True):
            figures.append(Figure(f"gradient mass at p {where}, {_NAMES[alpha]}, %", published, share, 1))
    return figures


def figures_of_controlled_run(
    start: np.ndarray, runs: Mapping[str, Sequence[SimulatedRun]], *, group_size: int, steps: int
) -> list[Figure]:
    """Figures of the controlled run, for those of its algorithms that were run.

    Args:
        start: (P,), solve rates at the start.
        runs: of ``grpo``, ``dr_grpo`` and ``dapo_redraw``, one run per seed. A figure is the mean over seeds.
    """
    same = (group_size, steps, len(start)) == (GROUP_SIZE, STEPS, N_PROMPTS)
    ends = (start < 0.1) | (start > 0.9)
    figures = []
    for alpha, published in ((1, 17.0), (0, 14.3)):
        mass = np.asarray(planning.gain(start, group_size, alpha=alpha))
        share = _shares(mass, {"ends": ends})["ends"]
        quantity = f"first update at p below 0.1 or above 0.9, {_NAMES[alpha]}, %"
        figures.append(Figure(quantity, published, share, 1, "in expectation", same))
    for name, rate in (("grpo", 0.99), ("dr_grpo", 0.88)):
        if name in runs:
            final = [float(run.quarters[-1, 0]) for run in runs[name]]
            figures.append(_mean_over_seeds(f"hardest quarter at the end, {name}", rate, final, 2, same))
    if "dapo_redraw" in runs:
        drawn = [float(run.rollouts[-1]) / (steps * group_size) for run in runs["dapo_redraw"]]
        figures.append(_mean_over_seeds("rollouts of dapo_redraw over those of grpo", 3.5, drawn, 1, same))
    return figures


def _mean_over_seeds(quantity: str, published: float, values: Sequence[float], decimals: int, same: bool) -> Figure:
    low, high = (f"{edge:.{decimals + 1}f}" for edge in (min(values), max(values)))
    spread = f"{low} to {high} over {len(values)} seeds" if len(values) > 1 else "one seed"
    return Figure(quantity, published, float(np.mean(values)), decimals, spread, same)


def _unbiased(prompts: Prompts, size: int, published: float) -> Figure:
    quantity = f"silent groups, G = {size}, unbiased, %"
    if prompts.correct is None or prompts.total is None:
        return Figure(quantity, published, None, 2, "needs counts of right responses; there are only rates")
    enough = prompts.total >= size
    if not enough.any():
        return Figure(quantity, published, None, 2, f"no prompt has {size} responses")
    silent = planning.silent_rate_from_counts(prompts.correct[enough], prompts.total[enough], size)
    note = "" if enough.all() else f"of the {int(enough.sum())} prompts with {size} responses or more"
    return Figure(quantity, published, 100 * float(np.mean(silent)), 2, note)


def _shares(mass: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How many percent of ``mass`` lie in each part."""
    return {name: 100 * float(mass[part].sum() / mass.sum()) for name, part in parts.items()}
