"""DaGRPO's other arms on the real stack, the mask alone and demonstrations alone; and a run that is killed."""

import numpy as np
import pytest
from dagrpo_runs import JUDGE, SAVED, SHORT, SIZE, shown_of_its_own, train_judged, write_problems
from running import metrics, remembered, replayed, verl_gsd

from verl_gsd.judge.cache import ScoreCache
from verl_gsd.records import read_records


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems"))


@pytest.mark.minutes(3)
@pytest.mark.parametrize(
    "words",
    [
        ("algo=dagrpo_mask", f"{JUDGE}.scorer=stub", "algorithm.gsd.dagrpo.mask=mean", "algorithm.gsd.dagrpo.delta=7"),
        ("algo=dagrpo_anchors", "algorithm.gsd.dagrpo.demonstrations.mode=always", "trainer.n_gpus_per_node=2"),
    ],
    ids=["the mask alone, on responses", "demonstrations alone, in every group that has one, two workers"],
)
def test_the_other_arms_run(problems, tmp_path, words):
    run = tmp_path / "run"
    done = verl_gsd(
        *("train", *words, *SHORT, f"data.train_files={problems.file}", f"trainer.default_local_dir={run}"),
        *("trainer.total_training_steps=3", "trainer.save_freq=-1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen, records = metrics(run, 1), read_records(run).to_pylist()
    assert all(0 < seen[step]["actor/grad_norm"] < np.inf for step in (1, 2, 3))
    if "algo=dagrpo_mask" in words:
        assert any(seen[step].get("dagrpo/masked/wrong", 0) > 0 for step in (1, 2, 3))
        assert {row["demonstrations"] for row in records} == {0}
    else:
        for row in records:
            shown = problems.by_index[row["index"]]["demonstration"] is not None
            assert (row["size"], row["demonstrations"]) == ((SIZE - 1, 1) if shown else (SIZE, 0))
        assert len({row["size"] for row in records}) == 2, "prompts with a demonstration, and prompts without"
        assert {row["dagrpo_pairs"] for row in records} == {None}


@pytest.mark.minutes(5)
def test_scores_and_successes_of_before_a_kill_are_known_after_it(problems, tmp_path):
    run = train_judged(tmp_path, problems, last=5, killed_after=3)
    assert any(step > SAVED >= max(earlier) for step, earlier in shown_of_its_own(run, problems))
    with ScoreCache(run.cache) as scores:
        later = list(scores.rows())
    known = {(judged.question, judged.score) for judged in later}
    assert {(judged.question, judged.score) for judged in run.early} <= known and len(known) == len(later)
    assert run.seen[SAVED + 1]["judge/cache_hits"] > 0, "the first step of a new process knows what was asked before"
    steps = dict(zip(run.records["step"].to_pylist(), run.records["attempt"].to_pylist(), strict=True))
    assert steps == run.attempts
    for step in (SAVED, 5):
        assert remembered(run.path / f"global_step_{step}") == replayed(run.records, step)
