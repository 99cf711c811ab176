"""The store of earlier responses is bounded, keeps the latest, and is saved and restored exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.prompts import PromptStore
from verl_gsd.responses import Response, ResponseStore

KEY = ("maths", 3)


def response(length=4, step=1, reward=1.0, **verdict):
    tokens = np.arange(length, dtype=np.int32) + step
    return Response(tokens, tokens % 3 > 0, reward, step, verdict)


def plain(responses):
    return [(r.tokens.tolist(), r.mask.tolist(), r.reward, r.step, dict(r.verdict)) for r in responses]


def test_an_unknown_prompt_has_no_responses():
    assert ResponseStore().recall(KEY) == []


def test_the_latest_responses_are_kept_and_older_ones_fill_up():
    store = ResponseStore()
    store.store(KEY, [response(step=1), response(step=1)], keep=3)
    store.store(KEY, [response(step=2), response(step=2)], keep=3)
    assert [r.step for r in store.recall(KEY)] == [2, 2, 1]
    store.store(KEY, [response(step=3)], keep=1)
    assert [r.step for r in store.recall(KEY)] == [3]


def test_the_prompts_stored_longest_ago_are_removed_when_the_store_is_full():
    store = ResponseStore(capacity=210)  # two responses of four tokens, and what their objects take
    for index in range(3):
        store.store(("maths", index), [response(4)], keep=1)
    assert [len(store.recall(("maths", index))) for index in range(3)] == [0, 1, 1]
    store.store(("maths", 1), [response(4, step=2)], keep=1)  # now the latest
    store.store(("maths", 5), [response(4)], keep=1)
    assert [len(store.recall(("maths", index))) for index in (1, 2, 5)] == [1, 0, 1]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 5), st.booleans()), min_size=0, max_size=12
    )
)
def test_a_restored_response_store_behaves_like_the_saved_one(visits):
    store = ResponseStore(capacity=440)
    for step, (source, index, length, judged) in enumerate(visits):
        store.store((source, index), [response(length, step, **({"acc": 0.5} if judged else {}))], keep=2)
    copy = ResponseStore(capacity=440)
    copy.load_state_dict(store.state_dict())
    for each in (store, copy):
        each.store(("a", 1), [response(9, 99)], keep=2)
    for source in "ab":
        for index in range(4):
            assert plain(copy.recall((source, index))) == plain(store.recall((source, index)))
    assert store.state_dict().keys() == copy.state_dict().keys()


def test_removing_a_prompt_removes_its_responses():
    prompts = PromptStore(capacity=2)
    for index in range(3):
        prompts.observe(("maths", index), 1, 2, step=index)
        prompts.responses.store(("maths", index), [response()], keep=1)
    assert [len(prompts.responses.recall(("maths", index))) for index in range(3)] == [0, 1, 1]
    copy = PromptStore(capacity=2)
    copy.load_state_dict(prompts.state_dict())
    assert plain(copy.responses.recall(("maths", 2))) == plain(prompts.responses.recall(("maths", 2)))


def test_a_capacity_must_be_positive():
    with pytest.raises(ValueError, match="capacity=0"):
        ResponseStore(capacity=0)


def test_a_response_larger_than_the_capacity_removes_no_other():
    store = ResponseStore(capacity=10 + 1000)
    store.store(("maths", 1), [response(4)], keep=1)
    store.store(("maths", 2), [response(2000)], keep=1)
    assert len(store.recall(("maths", 1))) == 1 and not store.recall(("maths", 2))


@pytest.mark.parametrize(
    "damage",
    [
        {"response_tokens": np.zeros(3, np.int32)},
        {"response_source": np.array([4], np.int32)},
        {"response_reward": np.zeros(2)},
        {"response_sources": "maths"},
        {"response_length": np.array([-4], np.int32)},
    ],
)
def test_inconsistent_arrays_are_rejected(damage):
    store = ResponseStore()
    store.store(KEY, [response()], keep=1)
    with pytest.raises(ValueError):
        ResponseStore().load_state_dict(store.state_dict() | damage)
