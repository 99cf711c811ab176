"""Minimal runs with what a comparison reads: tokens in records, accuracies in metrics, and a config."""

from pathlib import Path

import report_runs

KEYS = {
    "data__val_files": "test.parquet",
    "data__seed": None,
    "actor_rollout_ref__rollout__val_kwargs__n": 1,
}


def write_run(
    run: Path,
    tokens,
    accuracy,
    *,
    source="math",
    total: int | None = None,
    first=1,
    attempt=1,
    exact=None,
    prompts: int | None = None,
    **keys,
) -> Path:
    """Write ``tokens`` per step from ``first`` on, ``accuracy`` by step, and ``keys`` as report_runs.config does.

    Args:
        exact: exact accuracies by step, as the laboratory writes them.
        prompts: number of held-out prompts of each validation.
    """
    for step, number in enumerate(tokens, start=first):
        evicted = report_runs.group([0.0], tokens=number - 1)
        report_runs.records(
            run, step, (report_runs.group([1.0], tokens=1), "trained"), (evicted, "filtered"), attempt=attempt
        )
    lines = [(step, {"validation": 1} if step < first else {}) for step in range(first - 1, first + len(tokens))]
    for step, data in lines:
        if step in accuracy:
            data[f"val-core/{source}/acc/mean@1"] = accuracy[step]
            data |= {f"val/prompts/{source}": prompts} if prompts else {}
        if exact and step in exact:
            data["exact/accuracy"] = exact[step]
    report_runs.metrics(run, [(step, data) for step, data in lines if data.keys() != {"validation"}], attempt=attempt)
    report_runs.config(run, **KEYS | {"trainer__total_training_steps": total} | keys)
    return run
