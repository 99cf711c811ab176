"""Files of runs for tests of reports, written without a trainer by the package's own writer of records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from verl_gsd.groups import Group
from verl_gsd.records import LeftGroup, step_records, write_step

#: Text that a policy, a judge or a data set could put into a page.
HOSTILE = "</script><script>window.hostile = 1</script><img src=x onerror='window.hostile = 1'>"
#: A short file of YAML whose last entry stands for 10^29 texts.
YAML_BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))


def group(rewards, *, tokens=5, demonstrations=0, source="math", index=7):
    rewards = np.array(rewards, dtype=np.float64)
    tokens = np.full(len(rewards), tokens)
    return Group("uid", source, index, rewards, rewards, tokens, demonstrations=demonstrations)


def records(run: Path, step: int, *left, attempt: int = 1, alpha: float | None = 1.0) -> Path:
    """Write one step. Each of ``left`` is (rewards or a group, fate) or (..., fate, extension values)."""
    entries = []
    for what, fate, *values in left:
        entries.append(LeftGroup(what if isinstance(what, Group) else group(what), fate, *values))
    return write_step(
        run, predicted_records(entries, step=step, attempt=attempt, alpha=alpha), step=step, attempt=attempt
    )


def predicted_records(left, **where):
    """``records.step_records``, with ``silent_predicted``, which the trainer predicts, from the extension values."""
    name = "silent_predicted"
    predicted = [entry.extension_values.get(name) for entry in left]
    others = [{key: value for key, value in entry.extension_values.items() if key != name} for entry in left]
    table = step_records(
        [replace(entry, extension_values=values) for entry, values in zip(left, others, strict=True)], **where
    )
    return table.set_column(table.schema.get_field_index(name), name, pa.array(predicted, pa.float64()))


def metrics(run: Path, lines, *, attempt: int = 1, end: str = "\n") -> Path:
    """Write (step, scalars) as the trainer's logger does. Lines without a validation get the key of a training step."""
    path = run / "metrics" / f"attempt_{attempt}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = [(step, data if "validation" in data else {"training/global_step": step} | data) for step, data in lines]
    path.write_text("\n".join(json.dumps({"step": step, "data": data}) for step, data in trained) + end)
    return path


def config(run: Path, **keys) -> None:
    """Write ``a__b=1`` as a: {b: 1}."""
    tree: dict = {}
    for dotted, value in keys.items():
        *above, last = dotted.split("__")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    (run / "config.yaml").write_text(json.dumps(tree))


def rollouts(run: Path, step: int, values: Mapping[str, Sequence[float]], *, text: str = "", folder="rollouts") -> Path:
    """Write a dump of a step as verl does: one line per response of each prompt, whose accuracies are ``values``."""
    path = run / folder / f"{step}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"input": prompt, "output": f"{text}{number}", "gts": "42", "score": value, "acc": value, "step": step}
        | {"uid": f"{place}-{step}_{number}_0"}
        for place, (prompt, of_prompt) in enumerate(values.items())
        for number, value in enumerate(of_prompt)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def everything(run: Path, *, steps: int = 8, groups: int = 24, seed: int = 0, source: str = "math") -> Path:
    """A run with data for every section of a report."""
    rng = np.random.default_rng(seed)
    lines = [(0, {"validation": 1, f"val-core/{source}/acc/mean@1": 0.2})]
    for step in range(1, steps + 1):
        left = []
        for index in range(groups):
            rewards = (rng.random(8) < rng.beta(0.7, 0.7)).astype(float)
            mixed = 0 < rewards.sum() < 8
            further = {"hadw_anchor": 0.4 + step / 100, "hadw_factor_right": 1.2, "hadw_factor_wrong": 0.9}
            further |= {"silent_predicted": 0.3} if step > 1 else {}
            if mixed:
                further |= {"dagrpo_pairs": 12, "dagrpo_pairs_kept": 6, "dagrpo_pairs_contradicted": 2}
                further |= {"judge_failed": 1, "judge_score": 5.5}
            fate = ("trained", "filtered", "surplus", "stale")[index % 4] if index % 3 else "trained"
            made = group(rewards, tokens=100 + step, demonstrations=int(index == 0), source=source, index=index)
            made = replace(made, distinct_answers=1 + int(8 - rewards.sum()))
            left.append((made, fate, further))
        left.append((group([]), "failed"))
        records(run, step, *left)
        data = {"actor/entropy": 1 / step, "response_length/max": 512.0, "response_length/clip_ratio": 0.1}
        data |= {"dagrpo/pairs/tied": 0.2, "judge/latency/p50": 0.5, "judge/latency/p95": 0.9}
        data |= {"dagrpo/demonstrations/wanted": 4.0, "dagrpo/demonstrations/found": 2.0}
        data |= {"dagrpo/demonstrations/token_probability": 0.3, "dagrpo/demonstrations/own_token_probability": 0.8}
        data |= {f"gvpo/{name}": step / 10 for name in ("mse", "s_std", "pull_over_push", "sequence_kl")}
        data |= {"gvpo/s_length_correlation": -0.1, "gvpo/history/share": 0.25}
        data |= {f"budget/rollouts/p{percent}": percent / 10 for percent in (10, 50, 90)}
        data |= {"budget/mixed/expected": 0.6, "budget/mixed/expected_if_equal": 0.5}
        data |= {"sampler/disagreement/drawn": 0.4, "sampler/disagreement/everywhere": 0.3}
        data |= {"sampler/effective_prompts": 100.0}
        if step % 4 == 0:
            data[f"val-core/{source}/acc/mean@1"] = 0.2 + step / 50
        data["timing_s/step"] = 30.0
        lines.append((step, data))
    metrics(run, lines)
    rollouts(run, steps, {f"{source} {right}": [1] * right + [0] * (8 - right) for right in range(9)}, text=source)
    keys = {"data__max_response_length": 512, "actor_rollout_ref__rollout__n": 8}
    config(run, **keys, trainer__rollout_data_dir=str(run / "rollouts"))
    return run
