"""The distilled judge: fit and agreement on held-out problems, its folder on disk, and its scorer."""

import asyncio
import hashlib
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import random_model
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack

from verl_gsd.judge.agreement import measure_agreement
from verl_gsd.judge.distilled import DistilledScorer, fit
from verl_gsd.judge.encoder import LENGTH_FEATURES, MAX_TOKENS, Encoder, fingerprint
from verl_gsd.judge.encoder_cost import layer_weights, operations_per_second, seconds_per_response
from verl_gsd.judge.head import load_distilled
from verl_gsd.judge.same_problem import problem_labels
from verl_gsd.judge.scorer import JudgementError, Question


def made_judgements(problems=40, each=4):
    """Judgements whose score is the share of the letter a in the response, in tenths."""
    rng = random.Random(0)
    judgements = []
    for number in range(problems):
        for score in rng.sample(range(11), each):
            letters = ["a"] * (2 * score) + [rng.choice("xyz") for _ in range(20 - 2 * score)]
            rng.shuffle(letters)
            judgements.append((Question(f"problem {number}", "", "".join(letters)), float(score)))
    return judgements


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model):
    return Encoder(model)


@pytest.fixture(scope="module")
def head(encoder):
    return fit(made_judgements(), encoder, "a judge")


@pytest.fixture
def saved(head, tmp_path):
    head.save(tmp_path / "head")
    return tmp_path / "head"


def test_the_head_learns_scores_that_depend_on_the_text_but_not_shuffled_scores(head, encoder):
    judgements = made_judgements()
    measured = head.agreement
    assert (measured.n_train, measured.n_held_out, measured.pairs) == (128, 32, 48), "four fifths of 40 problems of 4"
    assert measured.r2 > 0.95 and measured.spearman > 0.95 and measured.order > 0.95 and measured.mask > 0.9
    scores = [score for _, score in judgements]
    random.Random(1).shuffle(scores)
    shuffled = fit([(question, score) for (question, _), score in zip(judgements, scores, strict=True)], encoder, "")
    assert shuffled.agreement.r2 < 0.2 and abs(shuffled.agreement.spearman) < 0.4 and shuffled.agreement.order < 0.75
    assert shuffled.penalty > head.penalty and shuffled.identity != head.identity


class ProblemEncoder:
    """An encoder that knows only the problem, by its number."""

    folder, identity, width = Path("encoder"), "e", 40

    def __init__(self):
        self._rng, self._by_problem = np.random.default_rng(1), {}

    def features(self, question):
        number = re.search("problem [0-9]+", question.problem)[0]
        known = self._by_problem.setdefault(number, self._rng.normal(size=self.width))
        return known + 0.1 * self._rng.normal(size=self.width)


SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."
OTHER_SUFFIXES = [
    " Please reason step by step, and put your final answer within \\boxed{}.",
    "\nAnswer with a number after ####.",
    "\nRemember to box the result at the end of your work.",
]


@pytest.mark.parametrize(
    "texts",
    [
        ["{}"],
        ["{}", "{} ", " {}\n", "{}" + " " * 4],
        ["{}", "{}" + SUFFIX],
        ["{}", "system: You are a careful solver of problems.\nuser: {}" + SUFFIX],
        ["{}" + SUFFIX, "{}" + OTHER_SUFFIXES[0]],
        ["{}" + SUFFIX, *("{}" + suffix for suffix in OTHER_SUFFIXES)],
        ["{}" + SUFFIX, "system: You are a careful solver of problems.\nuser: {}" + OTHER_SUFFIXES[0]],
    ],
)
@pytest.mark.parametrize("problem", ["problem {}", "What is the least root of the polynomial of problem {}?"])
def test_held_out_problems_are_new_whatever_the_text_around_them(texts, problem):
    """Scores are a number of the problem's, which says nothing about other problems."""
    rng, judgements = np.random.default_rng(0), []
    for number in range(60):
        level = rng.integers(0, 11)
        for row in range(8):
            text = texts[row % len(texts)].replace("{}", problem.format(number), 1)
            score = float(np.clip(level + rng.integers(-1, 2), 0, 10))
            judgements.append((Question(text, "a", f"r{row}"), score))
    agreement = fit(judgements, ProblemEncoder(), "j").agreement
    assert agreement.r2 < 0.1 and agreement.n_held_out == 12 * 8


def test_problems_that_differ_in_a_number_stay_apart_whatever_suffixes_they_have():
    problems = [f"What is {a} + {b}?" for a in range(10) for b in range(10)]
    texts = [problem + suffix for problem in problems for suffix in (SUFFIX, *OTHER_SUFFIXES)]
    labels = problem_labels(texts).reshape(100, 4)
    assert (labels == labels[:, :1]).all() and len(set(labels[:, 0])) == 100


def test_problems_get_one_label_for_all_their_texts():
    texts = ["1 + 1", "1+1", "1 + 1 + 1", "1 + 1" + SUFFIX, "", " ", "?", "2 + 1", "Caf\u00e9 1", "cafe\u0301 1\n"]
    assert problem_labels(texts).tolist() == [3, 3, 2, 3, 5, 5, 6, 7, 9, 9]
    assert problem_labels([]).tolist() == []


def test_fit_reports_progress_and_is_deterministic(encoder):
    seen = []
    judgements = made_judgements(problems=13)
    heads = [fit(judgements, encoder, "a judge", on_row) for on_row in (seen.append, lambda done: None)]
    assert seen == list(range(1, 53)) and heads[0].identity == heads[1].identity


def test_fractional_scores_are_predicted_without_rounding(encoder):
    judgements = [(question, score + 0.25 * (score < 10)) for question, score in made_judgements(problems=13)]
    measured = fit(judgements, encoder, "")
    assert not measured.head.whole and measured.agreement.r2 > 0.95


def test_features_are_hidden_states_averaged_over_the_response(encoder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    question = Question("12+3=?", "15", "1\n5")
    tokens = AutoTokenizer.from_pretrained(encoder.folder)("12+3=?\n1\n5", add_special_tokens=False)["input_ids"]
    model = AutoModel.from_pretrained(encoder.folder, dtype=torch.float32)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([list(tokens)])).last_hidden_state[0, -3:].double()
    measured = encoder.features(question)
    assert measured.shape == (encoder.width,)
    assert measured[:-LENGTH_FEATURES] == pytest.approx(states.mean(dim=0).numpy(), abs=1e-5)
    assert measured[-LENGTH_FEATURES:] == pytest.approx(np.log1p([3, 2]))


def test_features_of_an_empty_a_too_long_and_an_invalid_response(encoder):
    empty = encoder.features(Question("p", "", ""))
    assert not empty[:-LENGTH_FEATURES].any() and empty[-LENGTH_FEATURES] == 0
    long = encoder.features(Question("p", "", "x" * 5000 + "y" * MAX_TOKENS))
    assert long[:-LENGTH_FEATURES] == pytest.approx(
        encoder.features(Question("", "", "y" * MAX_TOKENS))[:-LENGTH_FEATURES], abs=1e-5
    )
    assert long[-LENGTH_FEATURES] == pytest.approx(math.log1p(5000 + MAX_TOKENS)), "the length is that of all of it"
    assert np.isfinite(encoder.features(Question("p\ud800", "", "\udfff"))).all()


def test_a_saved_head_is_loaded_unchanged(head, saved, encoder):
    again = load_distilled(saved)
    assert again.agreement == head.agreement and again.identity == head.identity
    assert (again.judge, again.penalty, again.encoder) == ("a judge", head.penalty, encoder.folder)
    features = np.random.default_rng(0).normal(size=(50, encoder.width)) * 100
    assert np.array_equal(again.head.predict(features), head.head.predict(features))
    assert {0, 10} <= set(head.head.predict(features)) <= set(range(11)), "the judge's were whole numbers"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["head"], "no temporary folder is left"
    with pytest.raises(FileExistsError, match="head"):
        head.save(saved)


def test_the_scorer_predicts_like_the_head_for_concurrent_questions(head, saved, encoder):
    judgements = made_judgements()[:10]

    async def score_all():
        scorer = DistilledScorer(saved)
        try:
            return scorer.identity, await asyncio.gather(*(scorer.score(question) for question, _ in judgements))
        finally:
            await scorer.close()

    identity, scores = asyncio.run(score_all())
    assert identity == head.identity and encoder.identity in identity
    expected = head.head.predict(np.array([encoder.features(question) for question, _ in judgements]))
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_judgement_fails_if_the_encoder_raises_or_returns_nan(saved, monkeypatch):
    scorer = DistilledScorer(saved)

    def out_of_memory(self, question):
        raise RuntimeError("the text of a response")

    question = Question("p", "", "r")
    for features, reason in (
        (out_of_memory, "server_error"),
        (lambda self, question: np.full(194, np.nan), "unreadable"),
    ):
        monkeypatch.setattr(Encoder, "features", features)
        with pytest.raises(JudgementError) as failure:
            asyncio.run(scorer.score(question))
        assert failure.value.reason == reason and "the text" not in str(failure.value)


def rewritten_head(folder, change):
    arrays = unpack((folder / "head.safetensors").read_bytes())
    change(arrays)
    content = pack(arrays)
    (folder / "head.safetensors").write_bytes(content)
    return {"head_sha256": hashlib.sha256(content).hexdigest()}


def drop_a_column(arrays):
    arrays["mean"] = arrays["mean"][:-1]


def zero_a_scale(arrays):
    arrays["scale"][3] = 0


def shorten(arrays):
    for name in ("mean", "scale", "weight"):
        arrays[name] = arrays[name][:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "head.safetensors").write_bytes(b"\x00" * 64), r"head\.safetensors: .*head\.json"),
        (lambda folder: (folder / "head.safetensors").unlink(), r"head\.safetensors.*FileNotFound"),
        (lambda folder: rewritten_head(folder, drop_a_column), r"head\.safetensors.*shapes"),
        (lambda folder: rewritten_head(folder, zero_a_scale), r"head\.safetensors.*scale"),
        (lambda folder: rewritten_head(folder, lambda arrays: arrays.pop("bias")), r"head\.safetensors.*bias"),
        (lambda folder: rewritten_head(folder, shorten), r"/model\d*: .*head\.safetensors"),
        (lambda folder: {"version": 2}, r"head\.json.*\b2\b"),
        (lambda folder: {"agreement": {"r2": 1}}, r"head\.json: .*agreement|head\.json: .*argument"),
        (lambda folder: {"encoder_identity": "0" * 16}, r"/model\d*: .*head\.safetensors"),
        (lambda folder: {"encoder": "/nowhere"}, r"/nowhere: .*config\.json"),
        (lambda folder: (folder / "head.json").write_text("{"), r"head\.json"),
        (lambda folder: (folder / "head.json").write_text("[]"), r"head\.json"),
    ],
)
def test_the_error_for_a_damaged_folder_names_the_file(saved, damage, message):
    changed = damage(saved)
    if isinstance(changed, dict):
        about = json.loads((saved / "head.json").read_text())
        (saved / "head.json").write_text(json.dumps(about | changed))
    with pytest.raises(ValueError, match=message):
        DistilledScorer(saved)


def test_the_fingerprint_changes_if_the_encoder_is_trained_further(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    assert fingerprint(copy) == fingerprint(model)
    weights = unpack((copy / "model.safetensors").read_bytes())
    weights = {name: values + np.float32(1e-3) for name, values in weights.items()}
    size = (copy / "model.safetensors").stat().st_size
    (copy / "model.safetensors").write_bytes(pack(weights, {"format": "pt"}))
    assert (copy / "model.safetensors").stat().st_size == size
    assert fingerprint(copy) != fingerprint(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"garbage!"), "model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model"),
    ],
)
def test_the_error_for_an_unreadable_encoder_names_the_folder(model, tmp_path, make, message):
    folder = tmp_path / "model"
    if "config" in message:
        folder.mkdir()
    else:
        shutil.copytree(model, folder)
    make(folder)
    with pytest.raises(ValueError, match=message) as failure:
        Encoder(folder)
    assert str(folder) in str(failure.value)


def test_the_error_for_an_unknown_device_names_it(model):
    with pytest.raises(ValueError, match=r"device=nowhere: .*\bcpu\b"):
        Encoder(model, "nowhere")


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([], r"\b0\b.*\b0\b.*\b50\b.*\b5\b"),
        (made_judgements(problems=12), r"\b48\b.*\b12\b"),
        ([(Question("one", "", "r"), 1.0)] * 60, r"\b60\b.*\b1\b"),
        ([*made_judgements(), (Question("p", "", "r"), 37.0)], r"\b160\b.*\b37\.0"),
        ([*made_judgements(), (Question("p", "", "r"), math.nan)], r"\b160\b.*\bnan\b"),
    ],
)
def test_too_few_judgements_and_scores_off_the_scale_are_rejected(judgements, message, encoder):
    with pytest.raises(ValueError, match=message):
        fit(judgements, encoder, "")


def test_agreement_matches_a_calculation_by_hand():
    scores = np.array([8.0, 3.0, 5.0, 2.0, 2.0])
    predicted = np.array([7.0, 4.5, 4.0, 3.0, 6.0])
    measured = measure_agreement(scores, predicted, [0, 0, 0, 1, 1], n_train=9)
    # Pairs: 8-3 and 7-4.5, 8-5 and 7-4, 3-5 and 4.5-4, 2-2 and 3-6.
    assert (measured.pairs, measured.order, measured.mask) == (4, 2 / 3, 2 / 4)
    assert (measured.judge_apart, measured.head_apart) == (2 / 4, 2 / 4)
    assert measured.r2 == pytest.approx(1 - ((scores - predicted) ** 2).sum() / ((scores - 4) ** 2).sum())
    assert "66.7%" in " ".join(measured.describe())


def test_undefined_measures_are_explained():
    alone = measure_agreement(np.array([1.0, 2.0]), np.array([1.0, 2.0]), [0, 1], n_train=9)
    assert alone.pairs == 0 and all(math.isnan(value) for value in (alone.order, alone.mask, alone.judge_apart))
    assert "mask" in alone.describe()[-1] and not re.search(r"\d", alone.describe()[-1])
    equal = measure_agreement(np.array([1.0, 1.0]), np.array([1.0, 2.0]), [0, 0], n_train=9)
    assert math.isnan(equal.r2) and math.isnan(equal.order) and equal.mask == 1.0
    _, of_scores, of_order, _ = equal.describe()
    assert not any(re.search(r" -?\d+\.\d|%", sentence) for sentence in (of_scores, of_order))
    tied = measure_agreement(np.array([1.0, 2.0]), np.array([5.0, 5.0]), [0, 0], n_train=9)
    assert tied.order == 0.5 and math.isnan(tied.spearman) and tied.r2 == 1 - 25 / 0.5
    assert "R^2 -49.000" in tied.describe()[1] and "nan" not in tied.describe()[1]


# Its cost


def test_only_the_layers_weights_count_and_they_are_read_without_loading_them(model, encoder):
    layers = sum(p.numel() for name, p in encoder._model.named_parameters() if "embed" not in name)
    assert layer_weights(model) == layers > 0
    (model / "broken.safetensors").write_bytes(b"x")
    try:
        with pytest.raises(ValueError, match=r"broken\.safetensors: "):
            layer_weights(model)
    finally:
        (model / "broken.safetensors").unlink()


def test_a_response_costs_two_operations_per_weight_and_token_up_to_the_encoders_limit():
    assert seconds_per_response(10, 300, rate=1000.0) == 6
    assert seconds_per_response(10, 10 * MAX_TOKENS, rate=1000.0) == seconds_per_response(10, MAX_TOKENS, rate=1000.0)


def test_measuring_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    assert operations_per_second() > 1e6
    assert torch.get_num_threads() == before
