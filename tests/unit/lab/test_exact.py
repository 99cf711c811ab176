"""Exact solve rates against enumeration of all responses, against sampling, and where they are absent."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from verl_gsd.lab.training.exact import ExactSolver, exact_solver, why_not_exact
from verl_gsd.lab.training.policy import TokenSampling, end_tokens, read_prompts, sample_responses, score_responses
from verl_gsd.tasks.arithmetic import compute_score

#: The byte E2 begins the characters of E2 80 83 (an em space, which is white space) and of others.
TOKENS = ("<eos>", "<sys>", "1", "2", "12", "Ċ", "Ġ2", "â", "Ģ", "ĥ")
PROMPTS = [[4, 2, 3], [2], [3, 3, 7, 2, 5]]
EOS, SYS, TWO, LINE_FEED, SPACE_TWO = (TOKENS.index(token) for token in ("<eos>", "<sys>", "2", "Ċ", "Ġ2"))
#: Sets of end tokens. The model does not have the token 13, and the last three sets have tokens with text.
ENDS = [(EOS,), (EOS, SYS), (EOS, LINE_FEED), (EOS, 13), (EOS, TWO), (EOS, SPACE_TWO), (TWO,)]


@pytest.fixture(scope="module")
def tokenizer():
    """Ten tokens in GPT-2's notation of bytes: Ċ is a line feed and Ġ a space. "12" has two spellings."""
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(TOKENS)}, merges=[("1", "2")]))
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", additional_special_tokens=["<sys>"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.8,
    )
    return LlamaForCausalLM(config).eval()


def all_responses(max_tokens, ends):
    """Every response, as a tuple of tokens: it ends with one of ``ends`` or has ``max_tokens`` tokens."""
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(range(len(TOKENS)), repeat=length):
            if set(ends).isdisjoint(tokens[:-1]) and (tokens[-1] in ends or length == max_tokens):
                yield tokens


@torch.no_grad()
def probabilities(model, prompt, responses, temperature):
    """(N,) the probability of each response, scored as training does."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in responses], batch_first=True)
    mask = torch.arange(rows.shape[1]) < torch.tensor([len(tokens) for tokens in responses]).unsqueeze(1)
    prompt_of = torch.zeros(len(rows), dtype=torch.int64)
    scores = score_responses(model, read_prompts(model, [prompt]), prompt_of, rows, temperature=temperature)
    return scores.log_probs.double().masked_fill(~mask, 0).sum(dim=1).exp().numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_tokens", [1, 2, 4])
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_rates_lie_in_their_bounds_by_enumeration(model, tokenizer, ends, max_tokens, temperature):
    responses = list(all_responses(max_tokens, ends))
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in responses]
    answers = ["12", "2", "21"]
    solver = ExactSolver(model, tokenizer, max_tokens=max_tokens, ends=ends, temperature=temperature)
    rates = solver.rates(PROMPTS, answers)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        probability = probabilities(model, prompt, responses, temperature)
        assert probability.sum() == pytest.approx(1, abs=1e-5)
        accepted = np.array([compute_score("", text, answer)["acc"] == 1 for text in texts])
        own = tuple(tokenizer.encode(answer, add_special_tokens=False))
        right = {own, *((*own, end) for end in set(ends) - {TWO, SPACE_TWO})}
        expected = sum(p for p, tokens in zip(probability, responses, strict=True) if tokens in right)
        assert rates.p[number] == pytest.approx(expected, rel=1e-4)
        solve_rate = probability[accepted].sum()
        assert rates.p[number] <= solve_rate + 1e-6
        assert solve_rate <= rates.p[number] + rates.slack[number] + 1e-6
        assert max_tokens < 4 or solve_rate > 1.001 * expected, "the verifier accepts other responses, too"
        assert rates.p[number] + rates.slack[number] < 1


@pytest.mark.parametrize(
    ("ends", "answer", "starts", "after"),
    [
        ([EOS], "12", "Ċ <sys> 1 â Ģ ĥ", "Ċ <sys> â Ģ ĥ"),
        ([EOS, SYS], "12", "Ċ 1 â Ģ ĥ", "Ċ â Ģ ĥ"),
        ([EOS, LINE_FEED], "12", "<sys> 1 â Ģ ĥ", "<sys> â Ģ ĥ"),
        ([EOS, SPACE_TWO], "2", "Ċ <sys> Ġ2 â Ģ ĥ", "Ċ <sys> â Ģ ĥ"),
        ([TWO], "2", "<eos> Ċ <sys> Ġ2 â Ģ ĥ", ""),
    ],
)
def test_the_slack_counts_each_way_to_another_accepted_response(model, tokenizer, ends, answer, starts, after):
    """A response may begin with white space, a special token, a part of a character, or another spelling."""
    (slack,) = ExactSolver(model, tokenizer, max_tokens=4, ends=ends).rates(PROMPTS[:1], [answer]).slack
    leaving = [[TOKENS.index(token)] for token in starts.split()]
    leaving += [[TOKENS.index(answer), TOKENS.index(token)] for token in after.split()]
    assert slack == pytest.approx(probabilities(model, PROMPTS[0], leaving, 1.0).sum(), abs=1e-6)


def test_probabilities_of_different_answers_do_not_exceed_one(model, tokenizer):
    answers = ["1", "2", "12", "21", "11", "22", "121", "122"]
    solver = ExactSolver(model, tokenizer, max_tokens=4, ends=[EOS])
    for prompt in PROMPTS:
        p = solver.rates([prompt] * len(answers), answers).p
        assert p.min() > 0 and p.sum() < 1


def test_a_pass_does_not_depend_on_its_size(model, tokenizer, monkeypatch):
    prompts, answers = PROMPTS * 3, ["12", "2", "21", "1"] * 2 + ["2"]
    solver = ExactSolver(model, tokenizer, max_tokens=3, ends=[EOS])
    whole = solver.rates(prompts, answers)
    monkeypatch.setattr("verl_gsd.lab.training.exact._PROMPTS", 4)
    monkeypatch.setattr("verl_gsd.lab.training.exact._ELEMENTS", 2 * 3 * len(TOKENS))
    parts = solver.rates(prompts, answers)
    assert parts.p == pytest.approx(whole.p, rel=1e-4) and parts.slack == pytest.approx(whole.slack, rel=1e-4)
    assert len(whole.p) == len(prompts)


def test_a_ground_truth_with_white_space_is_never_given(model, tokenizer):
    assert compute_score("", "12", "12\n")["acc"] == 0
    assert ExactSolver(model, tokenizer, max_tokens=4, ends=[EOS]).rates(PROMPTS[:1], ["12\n"]).p == [0]


def test_a_solve_rate_needs_a_temperature(model, tokenizer):
    with pytest.raises(ValueError, match="temperature=0"):
        ExactSolver(model, tokenizer, max_tokens=4, ends=[EOS], temperature=0)


def test_sampled_accuracy_agrees_on_the_embedded_task(tiny_task):
    model = AutoModelForCausalLM.from_pretrained(tiny_task / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    ends = end_tokens(str(tiny_task / "model"))
    with torch.no_grad():  # a policy that answers with few digits
        model.lm_head.bias = torch.nn.Parameter(torch.full((model.config.vocab_size,), -12.0))
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(list("0123456789"))] = 0.0
        model.lm_head.bias[tokenizer.eos_token_id] = 2.0
    rows = pq.read_table(tiny_task / "train.parquet").to_pylist()
    answers = [row["reward_model"]["ground_truth"] for row in rows]
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    rates = ExactSolver(model, tokenizer, max_tokens=3, ends=ends, temperature=0.9).rates(prompts, answers)
    copies = 200
    sampled = sample_responses(
        model,
        prompts,
        [copies] * len(prompts),
        max_tokens=3,
        ends=ends,
        sampling=TokenSampling(temperature=0.9),
        generator=torch.Generator().manual_seed(0),
    )
    texts = [tokenizer.decode(response.tokens, skip_special_tokens=True) for response in sampled]
    truths = np.repeat(answers, copies)
    right = int(sum(compute_score("", text, truth)["acc"] for text, truth in zip(texts, truths, strict=True)))
    interval = stats.binomtest(right, len(texts)).proportion_ci(0.999)
    assert rates.slack.max() < 1e-3
    assert 10 / len(texts) < interval.low < rates.p.mean() < interval.high


def test_exact_rates_are_absent_where_several_answers_are_right(compose_fast, model, tokenizer):
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu"]
    own, _ = compose_fast(*words)
    assert why_not_exact(own, TokenSampling()) == ""
    assert exact_solver(own, model, tokenizer, [EOS], TokenSampling()) is not None
    other, _ = compose_fast(*words, "reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths")
    assert "pkg://verl_gsd.tasks.maths" in why_not_exact(other, TokenSampling())
    for sampling, key in (
        (TokenSampling(0.0), "temperature"),
        (TokenSampling(top_k=5), "top_k=5"),
        (TokenSampling(top_p=0.9), "0.9"),
    ):
        assert key in why_not_exact(own, sampling)
        assert exact_solver(own, model, tokenizer, [EOS], sampling) is None
