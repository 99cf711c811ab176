"""Reward functions of users, right and wrong, for rehearsals."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, weight=1.0, **kwargs):
    right = float(f"\\boxed{{{ground_truth}}}" in solution_str)
    return {"score": weight * right, "acc": right, "length": len(solution_str)}


async def compute_score_async(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float(solution_str == str(ground_truth))


def compute_score_returns_none(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return None


def compute_score_raises(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    raise KeyError("level")


def compute_score_accepts_all(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return 1.0


def compute_score_without_acc(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return {"score": compute_score(data_source, solution_str, ground_truth)["score"]}
