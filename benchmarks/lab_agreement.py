"""Are the laboratory's runs as good as those of the stack? Final held-out accuracies, and a test of equivalence.

    .venv/bin/python benchmarks/comparison.py STACK
    .venv/bin/verl-gsd lab train algo=grpo task=arithmetic --seeds 1..16 ...    (into LAB/grpo/seed_1, ...)
    .venv/bin/python benchmarks/lab_agreement.py --stack STACK --lab LAB [--have benchmarks/results/comparison.json]

Both folders have runs ALGORITHM/seed_N. ``--have`` adds stack runs that are known by their curves alone. Runs of one
algorithm must have validated after the same last step. In the file of results, algorithms without runs keep their rows.

There are three figures per run:

- sampled: verl's accuracy of one response per held-out prompt. With 1,024 prompts it has a standard error of 0.016 from
  sampling alone.
- exact: the mean probability of the right answer (``lab/training/exact.py``), without that error. For a stack run, the
  weights of its last checkpoint give it, if the run kept them (``global_step_N/actor``).
- rollouts: the accuracy of all rollouts of the second half of the steps. It has the least noise, because it averages
  over steps as well as over responses.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import publishing
import typer
from rich.console import Console
from rich.table import Table

from verl_gsd.compare.comparison_file import read_curves
from verl_gsd.compare.curves import Curve, check_comparable
from verl_gsd.compare.run_curves import read_curve
from verl_gsd.evaluation.intervals import equivalence_test
from verl_gsd.records import read_records
from verl_gsd.rundir import EXACT, RunDirectory, read_metrics

#: Largest difference between mean accuracies that does not matter.
MARGIN = 0.03

#: algorithm -> seed -> value
Figures = dict[str, dict[int, float]]


def curves_in(folder: Path) -> list[Curve]:
    """The curves of all finished runs ``folder/ALGORITHM/seed_N``."""
    runs = sorted(folder.glob("*/seed_*"))
    return [curve for run in runs if (curve := read_curve(run, label=run.parent.name)).finished]


def sampled(curves: Sequence[Curve]) -> Figures:
    """The accuracies of the last validations."""
    found: Figures = defaultdict(dict)
    for curve in curves:
        found[curve.label][curve.seed] = curve.accuracy[-1]
    return found


def exact_of_lab(run: Path, step: int) -> float | None:
    """The exact accuracy in the metrics of a laboratory's run after ``step``; None if it is not there."""
    layout = RunDirectory(run)
    lines = (line for attempt in layout.attempts() for line in read_metrics(layout.metrics(attempt)))
    values = [scalars[EXACT] for at, scalars in lines if at == step and EXACT in scalars]
    return float(values[-1]) if values else None


def exact_of_stack(run: Path, step: int) -> float | None:
    """The exact accuracy of the weights in a stack run's checkpoint of ``step``; None if the run did not keep them."""
    checkpoint = RunDirectory(run).checkpoint(step)
    if not (checkpoint / "actor").is_dir():
        return None
    # Both import torch and verl, which takes 10 s, and comparing sampled accuracies needs neither.
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer

    from verl_gsd.export.checkpoint import open_checkpoint
    from verl_gsd.export.weights import origins_of, write_model
    from verl_gsd.lab.training.engine import load_model
    from verl_gsd.lab.training.exact import exact_solver
    from verl_gsd.lab.training.policy import TokenSampling, end_tokens
    from verl_gsd.lab.training.prompts import held_out_prompts

    config: Any = OmegaConf.load(RunDirectory(run).config)
    with tempfile.TemporaryDirectory() as folder, open_checkpoint(checkpoint, None) as opened:
        write_model(opened, Path(folder), "float32", origins_of(OmegaConf.to_container(config), distrust=None))
        model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(folder)
        ends = end_tokens(folder)
    prompts = held_out_prompts(config, tokenizer)
    val = config.actor_rollout_ref.rollout.val_kwargs
    solver = exact_solver(config, model, tokenizer, ends, TokenSampling(float(val.temperature)))
    return None if solver is None else float(solver.rates(prompts.ids, prompts.answers).p.mean())


def exact(curves: Sequence[Curve], of_run: Callable[[Path, int], float | None]) -> Figures:
    """The exact accuracies of all runs that have one."""
    found: Figures = defaultdict(dict)
    for curve in curves:
        value = of_run(Path(curve.run), curve.steps[-1])
        if value is not None:
            found[curve.label][curve.seed] = value
    return found


def of_rollouts(curves: Sequence[Curve]) -> Figures:
    """The accuracies of all rollouts in the second half of the steps, for runs whose folders are here."""
    found: Figures = defaultdict(dict)
    for curve in curves:
        if not Path(curve.run).is_dir():
            continue
        table = read_records(Path(curve.run), ["step", "correct", "total"])
        step, correct, total = (table[name].to_numpy() for name in ("step", "correct", "total"))
        late = step > curve.steps[-1] / 2
        found[curve.label][curve.seed] = float(correct[late].sum() / total[late].sum())
    return found


def check_last_steps(curves: Sequence[Curve]) -> None:
    """Check that all runs of one algorithm validated after the same last step.

    Raises:
        ValueError: two did not; the message names them.
    """
    first: dict[str, Curve] = {}
    for curve in curves:
        other = first.setdefault(curve.label, curve)
        if other.steps[-1] != curve.steps[-1]:
            raise ValueError(
                f"{other.run} ends at step {other.steps[-1]} and {curve.run} at step {curve.steps[-1]}. Use runs of "
                "one length"
            )


def compared(stack: Mapping[int, float], lab: Mapping[int, float], margin: float) -> dict[str, Any]:
    """One row of the table: seed -> accuracy on both sides, the difference lab - stack, and the test."""
    first, second = np.array([*stack.values()]), np.array([*lab.values()])
    found = equivalence_test(first, second, margin)
    return {
        "stack": {"by_seed": dict(sorted(stack.items())), "mean": first.mean(), "std": first.std(ddof=1)},
        "lab": {"by_seed": dict(sorted(lab.items())), "mean": second.mean(), "std": second.std(ddof=1)},
        "difference": found.difference.value,
        "interval_90": [found.difference.low, found.difference.high],
        "p_value": found.p_value,
        "is_equivalent": found.p_value < 0.05,
    }


def compare(stack: Figures, lab: Figures, margin: float) -> dict[str, dict[str, Any]]:
    """algorithm -> row, for all algorithms with at least two runs on both sides."""
    shared = [name for name in stack if len(stack[name]) > 1 and len(lab.get(name, {})) > 1]
    return {name: compared(stack[name], lab[name], margin) for name in sorted(shared)}


def show(title: str, rows: Mapping[str, Mapping[str, Any]], margin: float) -> None:
    table = Table(title=f"{title} accuracy, margin {margin:g}")
    for column in ("algorithm", "stack", "lab", "lab - stack", "90% interval", "p", "equivalent"):
        table.add_column(column)
    for name, row in rows.items():
        sides = [f"{row[side]['mean']:.4f} ({len(row[side]['by_seed'])} seeds)" for side in ("stack", "lab")]
        low, high = row["interval_90"]
        difference = [f"{row['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]", f"{row['p_value']:.4f}"]
        table.add_row(name, *sides, *difference, "yes" if row["is_equivalent"] else "no")
    Console().print(table)


def main(
    lab: Annotated[Path, typer.Option(help="Runs of the laboratory: LAB/ALGORITHM/seed_N.")],
    stack: Annotated[Path | None, typer.Option(help="Runs of the stack: STACK/ALGORITHM/seed_N.")] = None,
    have: Annotated[Path | None, typer.Option(help="A comparison with further curves of the stack.")] = None,
    margin: Annotated[float, typer.Option(help="The largest difference that does not matter.")] = MARGIN,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/lab_agreement.json"),
) -> None:
    """Compare final accuracies, print a table per figure, and write both."""
    on_stack = [*(read_curves(have) if have else []), *(curves_in(stack) if stack else [])]
    in_lab = curves_in(lab)
    labels = {curve.label for curve in in_lab}
    on_stack = [curve for curve in on_stack if curve.label in labels]
    check_comparable([*on_stack, *(replace(curve, label=f"{curve.label} in the laboratory") for curve in in_lab)])
    check_last_steps([*on_stack, *in_lab])
    result: dict[str, Any] = {"machine": publishing.machine(), "margin": margin}
    result["sampled"] = compare(sampled(on_stack), sampled(in_lab), margin)
    if not result["sampled"]:
        raise typer.BadParameter("no algorithm has two finished runs on the stack and two in the laboratory")
    result["exact"] = compare(exact(on_stack, exact_of_stack), exact(in_lab, exact_of_lab), margin)
    result["rollouts"] = compare(of_rollouts(on_stack), of_rollouts(in_lab), margin)
    earlier = json.loads(output.read_text()) if output.is_file() else {}
    for title in ("sampled", "exact", "rollouts"):
        if result[title]:
            show(title, result[title], margin)
        result[title] = {**earlier.get(title, {}), **result[title]}
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
