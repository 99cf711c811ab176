"""Fault injection: reward functions that misbehave, each in one way. For tests alone.

Which responses they misbehave on depends on the prompt's index and the response's text, and on nothing else.
Otherwise a response is right if it contains the ground truth.
"""

import hashlib
import threading
import time


def chosen(share, solution_str, extra_info):
    """Whether this response is among the ``share`` of all that a function misbehaves on."""
    text = f"{(extra_info or {}).get('index')} {solution_str}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < share * 2**32


def verdict(solution_str, ground_truth):
    right = float(str(ground_truth) in solution_str)
    return {"score": right, "acc": right}


def compute_score_raises_on_some(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if chosen(0.03, solution_str, extra_info):
        raise KeyError(solution_str)
    return verdict(solution_str, ground_truth)


def compute_score_raises(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    raise KeyError(solution_str)


def compute_score_returns_none(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return None if chosen(0.03, solution_str, extra_info) else verdict(solution_str, ground_truth)


def compute_score_returns_nan(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float("nan") if chosen(0.03, solution_str, extra_info) else verdict(solution_str, ground_truth)


def compute_score_without_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"acc": 1.0} if chosen(0.03, solution_str, extra_info) else verdict(solution_str, ground_truth)


def compute_score_hangs(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if chosen(0.02, solution_str, extra_info):
        threading.Event().wait()
    return verdict(solution_str, ground_truth)


def compute_score_hangs_alone(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Hangs where nothing else in its process runs: an ``re`` match keeps the interpreter to itself."""
    if chosen(0.02, solution_str, extra_info):
        import re

        re.match(r"(a+)+$", "a" * 60 + "b")
    return verdict(solution_str, ground_truth)


def compute_score_exits(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if chosen(0.03, solution_str, extra_info):
        raise SystemExit(3)
    return verdict(solution_str, ground_truth)


def compute_score_is_slow(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    time.sleep(2)
    return verdict(solution_str, ground_truth)


def compute_score_in_every_way(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """One of the faults above that end at once, on an eighth of the responses each."""
    for number, fault in enumerate(("raise", "none", "nan", "dict")):
        if chosen(0.125, f"{number} {solution_str}", extra_info):
            if fault == "raise":
                raise KeyError(solution_str)
            return {"none": None, "nan": float("nan"), "dict": {"acc": 1.0}}[fault]
    return verdict(solution_str, ground_truth)
