"""Reads from the files of a rehearsal what was seen to work.

Every statement is backed by a file that the run wrote: metrics, records, checkpoints, or the reward log.
No weights are loaded. A checkpoint's files are zip archives, whose tables of contents have a checksum of each tensor.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import checkpoints
from verl_gsd.extension import active
from verl_gsd.records import read_records
from verl_gsd.run.rehearsal.config import ALL_STEPS, FIRST_STEPS, has_reward_function, has_reward_model, judge_keys
from verl_gsd.run.rehearsal.report import Findings
from verl_gsd.rundir import TRAINED, RunDirectory, read_metrics

_GRAD_NORM = "actor/grad_norm"


def weight_checksums(checkpoint: Path) -> dict[str, int]:
    """(file and tensor) -> CRC-32 of the model's tensors in a checkpoint."""
    sums: dict[str, int] = {}
    for path in sorted((checkpoint / "actor").glob("model_world_size_*.pt")):
        with zipfile.ZipFile(path) as archive:
            records = (record for record in archive.infolist() if "/data/" in record.filename)
            sums |= {f"{path.name}/{record.filename}": record.CRC for record in records}
    return sums


def observe_first_attempt(run: RunDirectory, findings: Findings) -> None:
    """Check the steps, the validation and the checkpoint of the first attempt."""
    metrics = dict(read_metrics(run.metrics(1)))
    _check_steps(metrics, 1, FIRST_STEPS, findings)
    validated = sorted({name for values in metrics.values() for name in values if name.startswith("val-core/")})
    if validated:
        findings.worked.append(f"validation: {len(validated)} metrics, for example {validated[0]}")
    else:
        findings.wrong.append(
            "data.val_files: the run validated and logged no metric of it. Check that the file has rows and that "
            "trainer.test_freq is set."
        )
    checkpoint = run.checkpoint(FIRST_STEPS)
    if problem := checkpoints.damage(checkpoint):
        findings.wrong.append(f"trainer.save_freq: the checkpoint after step {FIRST_STEPS} is not complete: {problem}.")
    else:
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        findings.worked.append(f"checkpoint: {checkpoint.name} is complete ({size / 2**20:.0f} MiB)")


def observe_resume(run: RunDirectory, before: Mapping[str, int], findings: Findings) -> None:
    """Check that the second attempt continued from the checkpoint, and changed its weights.

    Args:
        before: ``weight_checksums`` of the checkpoint that the second attempt resumed from.
    """
    metrics = dict(read_metrics(run.metrics(2)))
    trained = [step for step, values in metrics.items() if TRAINED in values]
    if trained[:1] == [FIRST_STEPS + 1]:
        findings.worked.append(f"resume: the second attempt began with step {FIRST_STEPS + 1}")
    else:
        findings.wrong.append(f"resume: the second attempt trained steps {trained}, not step {FIRST_STEPS + 1}.")
    _check_steps(metrics, FIRST_STEPS + 1, ALL_STEPS, findings)
    after = weight_checksums(run.checkpoint(ALL_STEPS))
    changed = [name for name, checksum in after.items() if before.get(name) != checksum]
    if not after:
        findings.wrong.append(f"trainer.save_freq: there is no checkpoint after step {ALL_STEPS} to compare.")
    elif changed:
        others = (
            "" if len(changed) == len(after) else ". The others are frozen, or their gradient is 0, which is normal"
        )
        findings.worked.append(f"weights: {len(changed)} of {len(after)} tensors changed in step {ALL_STEPS}{others}")
    else:
        findings.wrong.append(
            f"actor_rollout_ref.actor.optim.lr: no weight changed in step {ALL_STEPS}. Set a learning rate above 0, or "
            "look for a loss that does not depend on the policy."
        )


def _check_steps(metrics: Mapping[int, Mapping[str, float]], first: int, last: int, findings: Findings) -> None:
    steps = {step: values for step, values in metrics.items() if TRAINED in values}
    if sorted(steps) != list(range(first, last + 1)):
        findings.wrong.append(
            f"trainer.total_training_steps: steps {sorted(steps)} were logged, not {first} to {last}."
        )
    odd = sorted({name for values in steps.values() for name, value in values.items() if not math.isfinite(value)})
    if odd:
        findings.wrong.append(f"metrics: {', '.join(odd[:5])}: not finite. Check the loss and the rewards.")
    norms = [values[_GRAD_NORM] for values in steps.values() if _GRAD_NORM in values]
    if norms and all(norm > 0 for norm in norms):
        shown = ", ".join(f"{norm:.3g}" for norm in norms)
        steps_text = f"step {first}" if first == last else f"steps {first} to {last}"
        findings.worked.append(f"{steps_text}: gradient norm {shown}")
    else:
        findings.wrong.append(
            f"{_GRAD_NORM}: {norms or 'was not logged'} in steps {first} to {last}: the loss had no gradient. "
            "Check the loss, the filters and the masks."
        )


def observe_groups(run: RunDirectory, config: DictConfig, findings: Findings) -> None:
    """Check the groups, and what the chosen algorithm should have done with them."""
    rows = read_records(run.path).to_pylist()
    kinds, fates = (Counter(row[name] for row in rows) for name in ("kind", "fate"))
    graded = sum(_is_fraction(row["mean"], row["size"]) for row in rows)
    if rows:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        findings.worked.append(f"records: {len(rows)} groups ({counts}), {graded} with graded scores")
    else:
        findings.wrong.append("records: no group was recorded. Check trainer.v1.trainer_mode.")
    if rows and has_reward_model(config) and not has_reward_function(config):
        means = [row["mean"] for row in rows if row["mean"] is not None]
        findings.worked.append(
            f"reward model: a random one scored {sum(row['size'] for row in rows)} responses through verl's client, "
            f"with means of groups from {min(means, default=0):.3g} to {max(means, default=0):.3g}"
        )
    if has_reward_function(config) and not any(row["std"] for row in rows):
        findings.wrong.append(
            "reward.custom_reward_function: no group had both right and wrong responses, although the seeded scores "
            "differ. Check that the function does not accept every response."
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        if fates["filtered"]:
            findings.worked.append(f"dynamic sampling: {fates['filtered']} groups were evicted and replaced")
        else:
            findings.wrong.append(
                "algorithm.filter_groups.enable=true: no group was evicted, although some are silent. Check "
                f"algorithm.filter_groups.metric={config.algorithm.filter_groups.metric}."
            )
    metrics = _last_metrics(run)
    if OmegaConf.select(config, "actor_rollout_ref.actor.use_kl_loss"):
        _check_feature("actor_rollout_ref.actor.use_kl_loss", ("actor/kl_",), (), metrics, rows, findings)
    for declaration in active(OmegaConf.select(config, "algorithm.gsd")):
        columns = tuple(column.name for column in declaration.record_columns)
        key = f"algorithm.gsd.{declaration.name}"
        # A section in another one has metrics under both names, or under its own: outer/inner/..., inner/...
        starts = (f"{declaration.name.replace('.', '/')}/", f"{declaration.name.rpartition('.')[2]}/")
        _check_feature(key, tuple(dict.fromkeys(starts)), columns, metrics, rows, findings)


def _last_metrics(run: RunDirectory) -> dict[str, float]:
    """The last value of every metric of all attempts."""
    return {name: value for values in _lines(run) for name, value in values.items()}


def _values(run: RunDirectory, name: str) -> list[float]:
    """The values of a metric in all steps of all attempts."""
    return [values[name] for values in _lines(run) if name in values]


def _lines(run: RunDirectory) -> Iterator[dict[str, float]]:
    return (values for attempt in run.attempts() for _, values in read_metrics(run.metrics(attempt)))


def _check_feature(
    key: str,
    starts: tuple[str, ...],
    columns: Sequence[str],
    metrics: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    findings: Findings,
) -> None:
    """Check that a feature left a trace: a metric whose name begins as in ``starts``, or a value in its columns."""
    names = sorted(name for name in metrics if name.startswith(starts))
    filled = [column for column in columns if any(row[column] is not None for row in rows)]
    if names:
        findings.worked.append(f"{key}: {len(names)} metrics, for example {names[0]} {metrics[names[0]]:.3g}")
    elif filled:
        findings.worked.append(f"{key}: it wrote {', '.join(filled)} into the records")
    else:
        findings.wrong.append(
            f"{key}: no metric {' or '.join(starts)}... and nothing in the records is of it. Check its settings."
        )


def _is_fraction(mean: float, total: int) -> bool:
    """Whether a mean of ``total`` scores cannot come from scores of 0 and 1 alone."""
    return bool(total) and abs(mean * total - round(mean * total)) > 1e-6


def observe_rewards(log: Path, config: DictConfig, findings: Findings) -> None:
    """Check the calls of the real reward function."""
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    calls = [entry for entry in entries if "failed" not in entry]
    if failed := Counter(entry["failed"] for entry in entries if "failed" in entry):
        counts = ", ".join(f"{what} {count} times" for what, count in failed.most_common())
        findings.wrong.append(
            f"reward.custom_reward_function: it failed for {failed.total()} of {len(entries)} responses ({counts}). "
            "Correct the function. The logs name the prompts."
        )
    if calls:
        scores = [entry["real"] for entry in calls]
        kinds = Counter(entry["kind"] for entry in calls)
        seeded = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        findings.worked.append(
            f"reward function: scored {len(calls)} responses from {min(scores):g} to {max(scores):g}. Seeded scores: "
            f"{seeded}. {sum(entry['accepted'] for entry in calls)} kept their real score."
        )
    elif has_reward_function(config) and not entries:
        findings.wrong.append("reward.custom_reward_function: it was not called. Check reward.reward_manager.")


def observe_judge(run: RunDirectory, answered: int, config: DictConfig, findings: Findings) -> None:
    """Check that the judge was asked.

    Args:
        answered: completions that the stand-in sent.
    """
    if not judge_keys(config):
        return
    key = judge_keys(config)[0]
    failures = max(_values(run, "judge/failures/any"), default=0.0)
    if answered and not failures:
        findings.worked.append(f"judge: the stand-in answered {answered} questions over HTTP, and all were parsed")
    else:
        findings.wrong.append(
            f"{key}: the stand-in answered {answered} questions, and a share of {failures:g} failed. Check "
            f"{key}.answer and {key}.timeout_s."
        )
