"""A rehearsal of a recipe on the real stack: two workers, a checkpoint, a resume, and the list at the end."""

import re

import pyarrow.parquet as pq
import pytest
import rehearsal_data
from omegaconf import OmegaConf
from rehearsing import MACHINE, part, rehearse
from running import metrics

from verl_gsd.records import read_records
from verl_gsd.rundir import RunDirectory


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """(folder of the rehearsal, what was printed) of a recipe with made-up data and stand-ins for its model."""
    folder = tmp_path_factory.mktemp("rehearsal")
    data = rehearsal_data.write_data(folder / "data")
    code, printed = rehearse(data, folder / "run", "recipe=gsd/qwen2.5_math_1.5b", MACHINE)
    assert code == 0, printed
    return folder / "run-rehearsal", printed


def test_it_trains_two_steps_and_resumes_for_a_third_with_two_workers(rehearsal):
    folder, printed = rehearsal
    run = folder / "run"
    assert max(metrics(run, 1)) == 2 and max(metrics(run, 2)) == 3
    assert len(list((run / "global_step_2" / "actor").glob("model_world_size_2_rank_*.pt"))) == 2
    worked = part(printed, "seen to work")
    assert "began with step 3" in worked
    assert "resume: the optimizer continued after 2 updates and then had 3" in worked
    assert "resume: step 3 used 8 prompts that steps 1 to 2 had not used" in worked
    assert "resume: the memory of prompts was carried on (16 visits at step 2, 24 at step 3)" in worked


def test_the_list_agrees_with_the_files_of_the_run(rehearsal):
    folder, printed = rehearsal
    rows = read_records(folder / "run").to_pylist()
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in ("mixed", "all_right", "all_wrong")}
    assert all(counts.values()), "groups of all kinds"
    worked = part(printed, "seen to work")
    assert f"{len(rows)} groups" in worked and all(f"{count} {kind}" in worked for kind, count in counts.items())
    calls = (folder / "rewards.jsonl").read_text().splitlines()
    assert f"scored {len(calls)} responses" in worked
    assert int(re.search(r"(\d+) of \d+ tensors changed", worked)[1]) > 0
    assert part(printed, "found wrong").strip() == "- nothing"


def test_stand_ins_are_named_and_the_estimator_and_the_data_are_those_of_the_recipe(rehearsal):
    folder, printed = rehearsal
    assert "stand-in: the tokenizer is a stand-in" in printed and "the chat template is a stand-in" in printed
    config = OmegaConf.load(RunDirectory(folder / "run").config)
    assert config.algorithm.gsd.alpha == 0.5 and config.actor_rollout_ref.rollout.n == 8
    rows = pq.read_table(config.data.train_files[0]).to_pylist()
    original = rehearsal_data.table("bigmath", "train", 256).to_pylist()
    assert rows and all(row in original for row in rows)
