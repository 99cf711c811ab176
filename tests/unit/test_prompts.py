"""The memory of prompts: what it keeps, what it removes, and its size."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.prompts import PromptStore, independent_prompts, prompt_hash, question_labels

keys = st.tuples(st.sampled_from(["gsm8k", "math"]), st.integers(-2, 5))
visits = st.lists(st.tuples(keys, st.integers(0, 8), st.integers(1, 8)), max_size=40)


@given(visits)
def test_counts_are_sums_over_visits(visits):
    store, slow = PromptStore(), {}
    for step, (key, correct, total) in enumerate(visits):
        store.observe(key, correct, total, step)
        slow[key] = np.add(slow.get(key, (0, 0, 0)), (1, correct, total))
    asked = [*slow, ("math", 99), ("nobody", 0)]
    found = np.stack(store.counts(asked), axis=1)
    assert found.tolist() == [*(list(counts) for counts in slow.values()), [0, 0, 0], [0, 0, 0]]
    assert len(store) == len(slow)


half_lives = st.none() | st.floats(0.1, 1e4)


@given(visits, half_lives, st.integers(0, 50))
def test_recent_counts_halve_with_every_half_life(visits, half_life, later):
    store = PromptStore(half_life=half_life)
    for step, (key, correct, total) in enumerate(visits):
        store.observe(key, correct, total, step)
    now = len(visits) + later
    asked = [*{key for key, _, _ in visits}, ("math", 99)]
    slow = np.zeros((len(asked), 2))
    for step, (key, correct, total) in enumerate(visits):
        share = 1.0 if half_life is None else 0.5 ** ((now - step) / half_life)
        slow[asked.index(key)] += share * np.array([correct, total])
    found = store.recent(asked, now)
    assert np.stack(found, axis=1) == pytest.approx(slow, rel=1e-9, abs=1e-300)
    assert [values.dtype for values in found] == [np.float64] * 2
    if half_life is None:
        assert np.array_equal(found, store.counts(asked)[1:])


graded_visits = st.lists(st.tuples(keys, st.lists(st.floats(0, 1), min_size=1, max_size=4)), min_size=1, max_size=20)


@given(graded_visits, half_lives)
def test_partial_credit_is_forgotten_like_the_counts_and_restored(graded, half_life):
    store, slow = PromptStore(half_life=half_life), {}
    for step, (key, accuracies) in enumerate(graded):
        partial = sum(accuracy * (1 - accuracy) for accuracy in accuracies)
        store.observe(key, sum(accuracies), len(accuracies), step, partial)
        share = 1.0 if half_life is None else 0.5 ** ((len(graded) - step) / half_life)
        slow[key] = slow.get(key, 0.0) + share * partial
    asked = [*slow, ("nobody", 0)]
    found = store.recent_partial(asked, len(graded))
    assert found.tolist() == pytest.approx([*slow.values(), 0.0], rel=1e-9, abs=1e-300)
    restored = PromptStore(half_life=half_life)
    restored.load_state_dict(store.state_dict())
    assert np.array_equal(restored.recent_partial(asked, len(graded)), found)
    assert np.array_equal(restored.all_recent(len(graded)).partial, store.all_recent(len(graded)).partial)


@given(visits)
def test_a_store_without_partial_credit_saves_what_older_versions_saved(visits):
    store = PromptStore()
    for step, (key, correct, total) in enumerate(visits):
        store.observe(key, correct, total, step)
    assert "recent_partial" not in store.state_dict()


@given(visits.filter(len), half_lives)
def test_a_source_that_is_left_out_has_no_prompts_and_the_others_keep_theirs(visits, half_life):
    store = PromptStore(half_life=half_life)
    for step, (key, correct, total) in enumerate(visits):
        store.observe(key, correct, total, step)
    assert "unrated_sources" not in store.state_dict(), "checkpoints are those of older versions"
    out, others = visits[0][0][0], [key for key, _, _ in visits if key[0] != visits[0][0][0]]
    before = store.counts(others), store.recent(others, len(visits))
    store.leave_out(out)
    restored = PromptStore(half_life=half_life)
    restored.load_state_dict(store.state_dict())
    for one in (store, restored):
        assert one.unrated == {out} and len(one) == len(set(others))
        assert not one.counts([key for key, _, _ in visits if key[0] == out])[0].any()
        after = one.counts(others), one.recent(others, len(visits))
        assert all(np.array_equal(*pair) for pair in zip(sum(before, ()), sum(after, ()), strict=True))
    store.leave_out("a source without prompts")
    assert store.state_dict()["unrated_sources"] == sorted([out, "a source without prompts"])


@given(visits, half_lives)
def test_an_older_checkpoint_without_recent_counts_is_restored(visits, half_life):
    before, after = PromptStore(), PromptStore(half_life=half_life)
    for step, (key, correct, total) in enumerate(visits):
        before.observe(key, correct, total, step)
    old = {name: value for name, value in before.state_dict().items() if not name.startswith("recent_")}
    after.load_state_dict(old)
    for key, last in {key: step for step, (key, _, _) in enumerate(visits)}.items():
        _, correct, total = before.counts([key])
        assert after.recent([key], last) == (correct, total)


@given(visits, visits)
def test_a_restored_store_behaves_like_the_saved_one(before, after):
    store, restored = PromptStore(capacity=6, half_life=3.7), PromptStore(capacity=6, half_life=3.7)
    for step, (key, correct, total) in enumerate(before):
        store.observe(key, correct, total, step)
    restored.load_state_dict(store.state_dict())
    for one in (store, restored):
        for step, (key, correct, total) in enumerate(after, start=100):
            one.observe(key, correct, total, step)
    first, second = store.state_dict(), restored.state_dict()
    assert first["sources"] == second["sources"]
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_prompts_with_the_oldest_visits_are_removed_first():
    store = PromptStore(capacity=32)
    for index in range(32):
        store.observe(("math", index), 1, 2, step=index)
    store.observe(("math", 0), 1, 2, step=40)
    store.observe(("math", 32), 1, 2, step=41)
    seen, _, _ = store.counts([("math", index) for index in (0, 1, 2, 3, 31, 32)])
    assert seen.tolist() == [2, 0, 0, 1, 1, 1]
    assert len(store) == 31

    smaller = PromptStore(capacity=2)
    smaller.load_state_dict(store.state_dict())
    assert smaller.counts([("math", 0), ("math", 32), ("math", 31)])[0].tolist() == [2, 1, 0]


@pytest.mark.parametrize("prompt_count", [6_250, 11_000])  # the second has just made its dictionary grow
def test_a_prompt_takes_at_most_200_bytes_so_a_million_fit_into_a_gigabyte(prompt_count):
    tracemalloc.start()
    store = PromptStore()
    for index in range(prompt_count):
        store.observe(("math", index + 10**7), 3, 8, step=1)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= 200 * len(store)
    assert peak <= 2**30 / 1_000_000 * len(store)


def test_a_capacity_or_half_life_that_is_not_positive_is_rejected():
    with pytest.raises(ValueError, match="capacity=0"):
        PromptStore(capacity=0)
    for half_life in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="half_life="):
            PromptStore(half_life=half_life)


def test_a_prompts_hash_is_the_same_in_every_process_and_for_any_text():
    prompt = [{"role": "user", "content": "naïve \ud800 ?"}]
    again = subprocess.run(
        [sys.executable, "-c", f"from verl_gsd.prompts import prompt_hash; print(prompt_hash({prompt!r}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(again.stdout) == prompt_hash(prompt) != prompt_hash([{"role": "system", "content": "naïve \ud800 ?"}])
    assert 0 <= prompt_hash(prompt) < 2**63
    assert prompt_hash([{"role": "user", "content": object()}]) == prompt_hash([{"role": "user", "content": object()}])


def test_prompts_that_differ_only_in_an_image_or_an_array_have_different_hashes():
    image = pytest.importorskip("PIL.Image")
    black, white = (image.new("RGB", (2, 2), colour) for colour in ("black", "white"))
    for one, other in ((black, white), (b"\x00", b"\x01"), (np.zeros(2), np.ones(2))):
        first, again, second = (prompt_hash([{"content": value}]) for value in (one, one, other))
        assert first == again != second


def test_repeated_prompts_are_as_many_independent_ones_as_have_the_variance_of_their_mean():
    assert independent_prompts("abcd") == 4 and independent_prompts("aabbccdd") == 4
    assert independent_prompts(["a"] * 500 + list(range(500))) == 3, "one prompt is half of the mean"
    assert independent_prompts(["a"]) == 1


def test_a_question_is_its_prompt_and_its_answer():
    chats = [[{"role": "user", "content": text}] for text in ("one", "one", "two", "one")]
    models = [{"ground_truth": truth} for truth in "1112"]
    first, same, *others = question_labels({"raw_prompt": chats, "reward_model": models})
    assert first == same and len({first, *others}) == 3
    without = question_labels({"raw_prompt": chats})
    assert without[0] == without[1] == without[3] != without[2]
