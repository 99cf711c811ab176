"""What a replayed run did, as plain data: kept as files, read back, compared. Knows none of our classes."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save

DATA = Path(__file__).parent / "data"

#: How far floats may differ, (relative, absolute). Losses, gradients and most metrics are float32 sums of terms of the
#: order of 1: builds of torch add them up in another order and have other exponentials, which makes 1e-7 per term.
#: Advantages are made in float64 and rounded to float32. Floats of the records are sums in float64. Whatever has no
#: tolerance (rows, records' counts and texts, saved state) is made by Python and numpy in a fixed order, and is exact.
_FLOAT32, _ADVANTAGES, _FLOAT64 = (1e-6, 1e-6), (1e-6, 1e-7), (1e-9, 1e-12)
#: Arrays that checkpoints of older code lack. Where the kept state lacks one, it is not compared.
_NEWER_ARRAYS = ("prompts/recent_partial",)
#: Columns of the records that are sums of a few float64 numbers in Python or numpy, and counts.
_EXACT = {"correct", "hadw_anchor", "judge_score"}
#: Metrics that depend on time or memory; and verl's own of two engines, exponentials of sums, which amplify rounding.
_LEFT_OUT = ("timing", "perf/", "share_of_step", "judge/latency", "rollout_corr/")


@dataclass
class Trace:
    """What a run did.

    Attributes:
        updates: step -> update -> micro-batch -> its ``rows``, ``loss`` and ``gradient_norm``, the norm of the loss's
            gradient with respect to the tokens' log-probabilities.
        advantages: step -> row -> (j,) float32, one number per token, as the workers got them.
        metrics: step -> name -> number, of verl's and of ours.
        records: the table of the run's groups.
        states: what stood in ``gsd/`` when the run was ``saved``, ``restored`` and saved again, and when it had
            ``ended``.
    """

    updates: dict = field(default_factory=dict)
    advantages: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    records: object = None
    states: dict = field(default_factory=dict)


def saved_state(checkpoint):
    """What stands in the ``gsd/`` folder of a checkpoint, but for the version of torch and digests."""
    content = json.loads((checkpoint / "gsd" / "state.json").read_text())
    arrays = load_file(checkpoint / "gsd" / "arrays.safetensors")
    return {"values": content["values"], "settings": content["settings"], "arrays": arrays}


def keep(trace, run, folder):
    """Write ``trace`` of the run in the folder ``run`` into ``folder``, in the place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = {step: {row: len(of) for row, of in rows.items()} for step, rows in trace.advantages.items()}
    steps = [
        {"step": step, "rows": rows[step], "updates": trace.updates[step], "metrics": _compared(trace.metrics[step])}
        for step in sorted(trace.updates)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    arrays = {str(step): np.concatenate(list(rows.values())) for step, rows in trace.advantages.items()}
    (folder / "advantages.safetensors").write_bytes(save(arrays))
    pq.write_table(trace.records, folder / "records.parquet", compression="zstd")
    saved, ended = sorted(run.glob("global_step_*"))
    for checkpoint, name in ((saved, "saved"), (ended, "ended")):
        for file in ("state.json", "arrays.safetensors"):
            (folder / name / "gsd").mkdir(parents=True, exist_ok=True)
            shutil.copy(checkpoint / "gsd" / file, folder / name / "gsd" / file)
    shutil.copy(saved / "data.pt", folder / "saved" / "data.pt")


def kept(name):
    """The trace of the run ``name`` as it was kept."""
    folder, trace = DATA / name, Trace()
    arrays = load_file(folder / "advantages.safetensors")
    for line in map(json.loads, (folder / "steps.jsonl").read_text().splitlines()):
        step, rows = line["step"], line["rows"]
        parts = np.split(arrays[str(step)], np.cumsum(list(rows.values()))[:-1])
        trace.updates[step], trace.metrics[step] = line["updates"], line["metrics"]
        trace.advantages[step] = dict(zip(rows, parts, strict=True))
    trace.records = pq.read_table(folder / "records.parquet")
    saved = saved_state(folder / "saved")
    trace.states = {"saved": saved, "restored": saved, "ended": saved_state(folder / "ended")}
    return trace


def differences(name, wanted, found):
    """Where the trace ``found`` of the run ``name`` is another one than ``wanted``: a line per quantity."""
    lines = []
    for step in sorted(wanted.updates.keys() | found.updates.keys()):
        at = f"{name}, step {step}"
        lines += _differences(f"{at}, updates", wanted.updates.get(step), found.updates.get(step), _FLOAT32)
        lines += _differences(f"{at}, advantages", wanted.advantages.get(step), found.advantages.get(step), _ADVANTAGES)
        metrics = (_compared(of.metrics.get(step, {})) for of in (wanted, found))
        lines += _differences(f"{at}, metrics", *metrics, _FLOAT32)
    records = wanted.records.to_pydict(), found.records.to_pydict()
    for column in sorted(records[0].keys() | records[1].keys()):
        tolerance = None if column in _EXACT else _FLOAT64
        lines += _differences(f"{name}, records, {column}", *(of.get(column) for of in records), tolerance)
    for state in sorted(wanted.states.keys() | found.states.keys()):
        before, now = wanted.states.get(state), found.states.get(state)
        if before and now:
            older = [array for array in _NEWER_ARRAYS if array not in before["arrays"]]
            now = now | {"arrays": {array: values for array, values in now["arrays"].items() if array not in older}}
        lines += _differences(f"{name}, state {state}", before, now, None)
    return lines


def _compared(metrics):
    return {name: value for name, value in metrics.items() if not any(part in name for part in _LEFT_OUT)}


def _differences(at, wanted, found, tolerance):
    """Lines of what is another value, or another type of value; floats may differ by ``tolerance``, if there is one."""
    if isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray):
        if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
            return [f"{at}: {wanted.dtype}{wanted.shape} is {found.dtype}{found.shape}"]
        wanted, found = wanted.tolist(), found.tolist()
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = [f"{at}, {key}: is missing" for key in wanted.keys() - found.keys()]
        lines += [f"{at}, {key}: is new, {found[key]!r}" for key in found.keys() - wanted.keys()]
        common = [key for key in wanted if key in found]
        return lines + [
            line for key in common for line in _differences(f"{at}, {key}", wanted[key], found[key], tolerance)
        ]
    if isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            return [f"{at}: {len(wanted)} entries are {len(found)}"]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [line for number, (of, other) in pairs for line in _differences(f"{at}, {number}", of, other, tolerance)]
    return [] if _alike(wanted, found, tolerance) else [f"{at}: {wanted!r} is {found!r}"]


def _alike(wanted, found, tolerance):
    if type(wanted) is not type(found):
        return False
    if isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    if isinstance(wanted, float) and tolerance is not None:
        relative, absolute = tolerance
        return math.isclose(wanted, found, rel_tol=relative, abs_tol=absolute)
    return wanted == found
