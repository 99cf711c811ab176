"""The reward function of a rehearsal. It calls the real one first and then replaces its score by a seeded score.

A random model scores zero on every prompt. All groups would then be unanimous, and estimators, filters and masks would
have nothing to do. The seed divides the prompts into four kinds:

- ``right``: all responses score 1.
- ``wrong``: all responses score 0.
- ``mixed``: each response scores 0 or 1, by a hash of its text.
- ``graded``: each response scores 0, 0.25, 0.5, 0.75 or 1, by a hash of its text. Only 1 counts as right.

The real result keeps its form. Its entries other than ``score`` and ``acc`` stay as they are. A result that verl-gsd
reports as a failed reward (an exception, None, no number) is passed on, so that the run reports it as it would on GPUs.
A response that the real function accepts like a reference answer keeps its real score: demonstrations must be accepted.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from verl_gsd.run.reward_sources import without_code

KINDS = ("right", "wrong", "mixed", "graded")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    rehearsal: Mapping[str, Any],
    **kwargs: Any,
) -> Any:
    """verl's signature, with the settings of the rehearsal.

    Args:
        rehearsal: ``path``, ``name`` and ``kwargs`` of the real function (``path`` is None for verl's own), ``seed``,
            ``accepted_score`` (the lowest score of an accepted reference, or None) and ``log`` (a file that gets one
            line per call).
    """
    real = real_function(rehearsal["path"], rehearsal["name"])
    log = Path(rehearsal["log"])
    try:
        result = await call(
            real,
            data_source=data_source,
            solution_str=solution_str,
            ground_truth=ground_truth,
            extra_info=extra_info,
            **kwargs,
            **rehearsal["kwargs"],
        )
    except Exception as error:  # the user's function can raise any error; the trainer counts it
        _log(log, {"failed": f"raised {type(error).__name__}"})
        raise
    score = score_of(result)
    if score is None:
        _log(log, {"failed": "returned no score"})
        return result
    kind = kind_of_prompt(rehearsal["seed"], data_source, ground_truth, extra_info)
    accepted = rehearsal["accepted_score"]
    is_accepted = accepted is not None and score >= accepted
    _log(log, {"real": score, "kind": kind, "accepted": is_accepted})
    return result if is_accepted else with_score(result, seeded_score(kind, rehearsal["seed"], solution_str))


@functools.cache
def real_function(path: str | None, name: str | None) -> Callable[..., Any]:
    """The run's own reward function, loaded as verl loads it."""
    if path is None:
        from verl.utils.reward_score import default_compute_score

        return without_code(default_compute_score)
    from verl.utils.import_utils import load_extern_object

    return load_extern_object(module_path=path, object_name=name)


async def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call a reward function as verl does: in a thread, unless it is a coroutine function."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await asyncio.to_thread(function, **arguments)


def score_of(result: Any) -> float | None:
    """The score in a reward function's result; None if verl-gsd counts the result as a failed reward."""
    score = result.get("score") if isinstance(result, dict) else result
    try:
        number = None if score is None or isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def with_score(result: Any, score: float) -> Any:
    """``result`` with another score, and the ``acc`` that belongs to it if the result has one."""
    if not isinstance(result, dict):
        return score
    return result | {"score": score} | ({"acc": float(score == 1.0)} if "acc" in result else {})


def kind_of_prompt(seed: int, data_source: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> str:
    """The kind of a prompt's groups, the same at every visit."""
    index = (extra_info or {}).get("index")
    return KINDS[_hash(seed, data_source, ground_truth, index) % len(KINDS)]


def seeded_score(kind: str, seed: int, response: str) -> float:
    if kind in ("right", "wrong"):
        return float(kind == "right")
    number = _hash(seed, response)
    return float(number % 2) if kind == "mixed" else number % 5 / 4


def _hash(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode(errors="replace")).digest()[:8], "big")


def _log(path: Path, entry: dict[str, Any]) -> None:
    """Append a line with a single write, because several reward workers share the file."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(entry) + "\n").encode())
