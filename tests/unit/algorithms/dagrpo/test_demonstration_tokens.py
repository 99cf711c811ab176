"""What may stand for a demonstration, and why not."""

import numpy as np
import pytest

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.tokens import expert_texts, expert_tokens, own_tokens, succeeded
from verl_gsd.tasks.byte_llama import build_tokenizer

PROMPT = "<|user|>3+8=<|assistant|>"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("text", ["11", "11<eos>"])
def test_an_experts_text_ends_with_one_eos(tokenizer, text):
    tokens = expert_tokens(text, tokenizer, prompt=PROMPT, longest=3)
    assert tokenizer.decode(tokens) == "11<eos>" and tokens.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "prompt", "reason"),
    [
        (" \n", PROMPT, "empty"),
        ("111", PROMPT, "too_long"),
        ("1<eos>1", PROMPT, "template"),
        ("<|assistant|>11", PROMPT, "template"),
        ("<think>1", PROMPT + "\n<think>\n", "template"),
        (" <think>1", PROMPT + "\n<think>\n", "template"),
    ],
)
def test_a_text_that_is_no_response_is_refused_with_the_reason(tokenizer, text, prompt, reason):
    assert expert_tokens(text, tokenizer, prompt=prompt, longest=3 if reason == "too_long" else 99) == reason


def test_what_the_prompt_has_not_opened_a_text_may_open(tokenizer):
    assert not isinstance(expert_tokens("<think>1</think>1", tokenizer, prompt=PROMPT, longest=99), str)


def test_the_longest_response_allowed_has_room_for_its_eos(tokenizer):
    assert len(expert_tokens("11", tokenizer, prompt=PROMPT, longest=3)) == 3
    assert expert_tokens("11", tokenizer, prompt=PROMPT, longest=2) == "too_long"


def test_a_response_of_the_policys_own_that_was_cut_off_is_none(tokenizer):
    whole = np.array([*tokenizer.encode("11"), tokenizer.eos_token_id], np.int32)
    assert own_tokens(whole, tokenizer, longest=3).tolist() == whole.tolist()
    assert own_tokens(whole[:-1], tokenizer, longest=3) == "no_eos"
    other_end = np.array([*whole[:-1], tokenizer.convert_tokens_to_ids("<|user|>")], np.int32)
    assert not isinstance(own_tokens(other_end, tokenizer, longest=3), str), "a model may stop at another special token"
    assert own_tokens(whole, tokenizer, longest=2) == "too_long"
    assert own_tokens(whole[:0], tokenizer, longest=2) == "empty"


def test_a_cell_holds_no_text_one_or_several():
    assert expert_texts(None) == expert_texts("") == expert_texts([]) == []
    assert expert_texts("a") == ["a"]
    assert expert_texts(np.array(["a", "", "b"], dtype=object)) == ["a", "b"]
    for wrong in (7, {"text": "a"}, ["a", 7]):
        with pytest.raises(ValueError, match=type(wrong).__name__):
            expert_texts(wrong)


def test_a_verdict_that_is_none_is_an_error_and_not_a_failure():
    assert succeeded(1.0, "here") and not succeeded(0.0, "here") and not succeeded(0.5, "here")
    for wrong in (float("nan"), -1.0, 2.0):
        with pytest.raises(ValueError, match=rf"algorithm\.gsd\.dagrpo\.demonstrations\b.*here\b.*{wrong}"):
            succeeded(wrong, "here")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"source": "both"}, "source=both: .*expert, self, expert_or_self"),
        ({"mode": "never"}, "mode=never: .*all_fail, always"),
        ({"per_group": 0}, "per_group=0: "),
        ({"per_group": True}, "per_group=true: "),
        ({"column": 7}, "column=7: "),
        ({"colum": "x"}, "colum: .*column"),
    ],
)
def test_a_wrong_setting_is_named(section, message):
    with pytest.raises(ValueError, match=message):
        DemonstrationSettings.of(section)
