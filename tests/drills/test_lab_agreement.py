"""The laboratory repeats five steps of runs on the stack, from their responses alone, and nothing differs.

Whatever Python and numpy compute is equal. The rest is float32, in two orders of summation, with errors of about 1e-6.
The learning rate begins at 0 and rises for five steps, as in every run of this task. This matters, because AdamW's
first step changes every weight by the learning rate. At the full rate, errors of the smallest gradients would
therefore become errors of the weights. The gradients of five steps differed by 5e-5 then.
"""

import pytest
from agreement import differences, environment, metrics_that_differ, repeat, words_of
from running import TASK, verl_gsd

COMMON = (
    *("task=arithmetic", "hardware=cpu", "data.train_batch_size=8", "trainer.total_training_steps=5"),
    *("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1"),
)
TWO_UPDATES = "actor_rollout_ref.actor.ppo_mini_batch_size=4"
#: The stub's scores are from 0 to 10. Only pairs with a gap of at least 9 count.
MASK = (
    "algorithm.gsd.dagrpo.judge.scorer=stub",
    "algorithm.gsd.dagrpo.judge.cache=null",
    "algorithm.gsd.dagrpo.delta=9",
)
#: name -> (words, updates, memories, fates)
RUNS = {
    "grpo": (("algo=grpo", TWO_UPDATES), 10, {"prompts"}, {"trained"}),
    "hadw_dapo": (("algo=hadw_dapo",), 5, {"prompts", "hadw"}, {"trained", "filtered"}),
    "dagrpo_mask": (("algo=dagrpo_mask", *MASK), 5, {"prompts", "dagrpo"}, {"trained"}),
    "gvpo": (("algo=gvpo",), 20, {"prompts"}, {"trained"}),
}


@pytest.fixture(scope="module")
def task():
    done = verl_gsd("prepare", "arithmetic")
    assert done.returncode == 0, done.stderr
    return TASK


@pytest.mark.minutes(2)
@pytest.mark.parametrize("name", RUNS)
def test_the_laboratory_repeats_a_run_of_the_stack(task, tmp_path, name):
    own, updates, memories, fates = RUNS[name]
    words, recorded = (*own, *COMMON), tmp_path / "stack"
    done = verl_gsd("train", *words, *words_of(recorded), env=environment(tmp_path / "package"))
    assert done.returncode == 0, done.stdout + done.stderr
    stack, lab = repeat(recorded, tmp_path / "lab", words)

    # What the run did.
    assert (stack.steps, stack.updates) == (5, updates)
    assert fates <= {fate for _, _, fate in stack.fates()}
    assert stack.memories(5)[0].keys() == memories and stack.memories(1) != stack.memories(5)
    if name == "dagrpo_mask":
        judged = [row for row in stack.records() if row["dagrpo_pairs"]]
        assert 0 < sum(row["dagrpo_pairs_kept"] for row in judged) < sum(row["dagrpo_pairs"] for row in judged)

    # The same in the laboratory.
    assert lab.prompts() == stack.prompts() and lab.fates() == stack.fates()
    assert lab.records() == stack.records()
    for step in range(1, 6):
        assert lab.memories(step) == stack.memories(step)
        assert lab.names(step) == stack.names(step), "the rows of the batch, in their order"
    for number in range(1, updates + 1):
        assert lab.update(number)["rows"] == stack.update(number)["rows"]
    found = differences(stack, lab)
    assert max(found["advantages"]) < 1e-6
    assert found["old_log_probs"][0] < 1e-5 and max(found["old_log_probs"]) < 1e-4
    assert found["gradient"][0] < 1e-5 and max(found["gradient"]) < 1e-4
    assert found["all gradients"][0] < 1e-5
    assert max(found["weights"]) < 1e-6
    assert not metrics_that_differ(stack, lab)
