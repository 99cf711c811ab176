"""The distilled judge: what it learns and does not, on problems left out; its folder; the scorer on top of it."""

import asyncio
import hashlib
import json
import math
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack

from verl_gsd.judge.agreement import agreement
from verl_gsd.judge.distilled import DistilledScorer, fit
from verl_gsd.judge.encoder import CHEAP, MAX_TOKENS, Encoder, fingerprint
from verl_gsd.judge.head import load
from verl_gsd.judge.scorer import JudgementError, Question


def made_judgements(problems=40, each=4):
    """Scores that are the share of the letter a in the response, in tenths: there to be read off the text."""
    rng = random.Random(0)
    made = []
    for number in range(problems):
        for score in rng.sample(range(11), each):
            letters = ["a"] * (2 * score) + [rng.choice("xyz") for _ in range(20 - 2 * score)]
            rng.shuffle(letters)
            made.append((Question(f"problem {number}", "", "".join(letters)), float(score)))
    return made


@pytest.fixture(scope="module")
def encoder(tiny_task):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # twenty bytes at a time: two threads wait for each other
    yield Encoder(tiny_task / "model")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def head(encoder):
    return fit(made_judgements(), encoder, "a judge")


@pytest.fixture
def saved(head, tmp_path):
    head.save(tmp_path / "head")
    return tmp_path / "head"


def test_it_learns_what_is_in_the_text_and_nothing_of_shuffled_scores(head, encoder):
    judgements = made_judgements()
    found = head.agreement
    assert (found.n_train, found.n_held_out, found.pairs) == (128, 32, 48), "four fifths of 40 problems of 4"
    assert found.r2 > 0.95 and found.spearman > 0.95 and found.order > 0.95 and found.mask > 0.9
    scores = [score for _, score in judgements]
    random.Random(1).shuffle(scores)
    shuffled = fit([(question, score) for (question, _), score in zip(judgements, scores, strict=True)], encoder, "")
    assert shuffled.agreement.r2 < 0.2 and abs(shuffled.agreement.spearman) < 0.4 and shuffled.agreement.order < 0.75
    assert shuffled.penalty > head.penalty and shuffled.identity != head.identity


def test_progress_is_told_and_the_same_judgements_make_the_same_head(encoder):
    seen = []
    judgements = made_judgements(problems=13)
    made = [fit(judgements, encoder, "a judge", on_row) for on_row in (seen.append, lambda done: None)]
    assert seen == list(range(1, 53)) and made[0].identity == made[1].identity


def test_scores_between_whole_numbers_are_learned_as_such(encoder):
    judgements = [(question, score + 0.25 * (score < 10)) for question, score in made_judgements(problems=13)]
    found = fit(judgements, encoder, "")
    assert not found.head.whole and found.agreement.r2 > 0.95


def test_features_are_the_mean_over_the_responses_tokens(encoder):
    import torch

    question = Question("12+3=?", "15", "1\n5")
    tokens = torch.tensor([list(encoder._tokenizer("12+3=?\n1\n5", add_special_tokens=False)["input_ids"])])
    with torch.no_grad():
        states = encoder._model(input_ids=tokens).last_hidden_state[0, -3:].double()
    found = encoder.features(question)
    assert found.shape == (encoder.width,)
    assert found[:-CHEAP] == pytest.approx(states.mean(dim=0).numpy(), abs=1e-5)
    assert found[-CHEAP:] == pytest.approx(np.log1p([3, 2]))


def test_an_empty_response_one_that_is_too_long_and_one_that_is_no_text(encoder):
    empty = encoder.features(Question("p", "", ""))
    assert not empty[:-CHEAP].any() and empty[-CHEAP] == 0
    long = encoder.features(Question("p", "", "x" * 5000 + "y" * MAX_TOKENS))
    assert long[:-CHEAP] == pytest.approx(encoder.features(Question("", "", "y" * MAX_TOKENS))[:-CHEAP], abs=1e-5)
    assert long[-CHEAP] == pytest.approx(math.log1p(5000 + MAX_TOKENS)), "the length is that of all of it"
    assert np.isfinite(encoder.features(Question("p\ud800", "", "\udfff"))).all()


def test_what_is_saved_is_what_is_read(head, saved, encoder):
    again = load(saved)
    assert again.agreement == head.agreement and again.identity == head.identity
    assert (again.judge, again.penalty, again.encoder) == ("a judge", head.penalty, encoder.folder)
    features = np.random.default_rng(0).normal(size=(50, encoder.width)) * 100
    assert np.array_equal(again.head.predict(features), head.head.predict(features))
    assert {0, 10} <= set(head.head.predict(features)) <= set(range(11)), "the judge's were whole numbers"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["head"], "no temporary folder is left"
    with pytest.raises(FileExistsError, match="there already"):
        head.save(saved)


def test_the_scorer_scores_as_the_head_does_and_many_at_once(head, saved, encoder):
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


def test_an_encoder_that_fails_or_gives_no_number_fails_the_judgement(saved, monkeypatch):
    scorer = DistilledScorer(saved)

    def out_of_memory(question):
        raise RuntimeError("the text of a response")

    question = Question("p", "", "r")
    for features, reason in ((out_of_memory, "server_error"), (lambda q: np.full(194, np.nan), "unreadable")):
        monkeypatch.setattr(scorer._encoder, "features", features)
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
        (lambda folder: (folder / "head.safetensors").write_bytes(b"\x00" * 64), r"head\.safetensors.*digest"),
        (lambda folder: (folder / "head.safetensors").unlink(), r"head\.safetensors.*FileNotFound"),
        (lambda folder: rewritten_head(folder, drop_a_column), r"head\.safetensors.*shapes"),
        (lambda folder: rewritten_head(folder, zero_a_scale), r"head\.safetensors.*scale of 0"),
        (lambda folder: rewritten_head(folder, lambda arrays: arrays.pop("bias")), r"head\.safetensors.*bias"),
        (lambda folder: rewritten_head(folder, shorten), "not the encoder"),
        (lambda folder: {"version": 2}, r"head\.json.*version 2"),
        (lambda folder: {"agreement": {"r2": 1}}, r"head\.json.*Distil it anew"),
        (lambda folder: {"encoder_identity": "0" * 16}, "not the encoder"),
        (lambda folder: {"encoder": "/nowhere"}, r"/nowhere: no config\.json"),
        (lambda folder: (folder / "head.json").write_text("{"), r"head\.json"),
        (lambda folder: (folder / "head.json").write_text("[]"), r"head\.json"),
    ],
)
def test_a_damaged_folder_is_named(saved, damage, message):
    changed = damage(saved)
    if isinstance(changed, dict):
        about = json.loads((saved / "head.json").read_text())
        (saved / "head.json").write_text(json.dumps(about | changed))
    with pytest.raises(ValueError, match=message):
        DistilledScorer(saved)


def test_an_encoder_trained_further_is_another_one(tiny_task, tmp_path):
    copy = shutil.copytree(tiny_task / "model", tmp_path / "model")
    assert fingerprint(copy) == fingerprint(tiny_task / "model")
    weights = unpack((copy / "model.safetensors").read_bytes())
    weights = {name: values + np.float32(1e-3) for name, values in weights.items()}
    size = (copy / "model.safetensors").stat().st_size
    (copy / "model.safetensors").write_bytes(pack(weights, {"format": "pt"}))
    assert (copy / "model.safetensors").stat().st_size == size
    assert fingerprint(copy) != fingerprint(tiny_task / "model")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not readable as a language model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"garbage!"), "not readable as a language model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not readable as a language model"),
    ],
)
def test_a_folder_that_is_no_encoder_is_named(tiny_task, tmp_path, make, message):
    folder = tmp_path / "model"
    if "no config" in message:
        folder.mkdir()
    else:
        shutil.copytree(tiny_task / "model", folder)
    make(folder)
    with pytest.raises(ValueError, match=message) as failure:
        Encoder(folder)
    assert str(folder) in str(failure.value)


def test_a_device_that_is_not_there_is_named(tiny_task):
    with pytest.raises(ValueError, match=r"device=nowhere: .*Write cpu"):
        Encoder(tiny_task / "model", "nowhere")


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([], "0 judgements on 0 problems: 50 on 5"),
        (made_judgements(problems=12), "48 judgements on 12 problems"),
        ([(Question("one", "", "r"), 1.0)] * 60, "60 judgements on 1 problems.*Let the judge score more"),
        ([*made_judgements(), (Question("p", "", "r"), 37.0)], r"judgement 160 has the score 37\.0"),
        ([*made_judgements(), (Question("p", "", "r"), math.nan)], "judgement 160 has the score nan"),
    ],
)
def test_too_few_or_other_scores_are_refused(judgements, message, encoder):
    with pytest.raises(ValueError, match=message):
        fit(judgements, encoder, "")


def test_agreement_by_hand():
    scores = np.array([8.0, 3.0, 5.0, 2.0, 2.0])
    predicted = np.array([7.0, 4.5, 4.0, 3.0, 6.0])
    found = agreement(scores, predicted, [0, 0, 0, 1, 1], n_train=9)
    # Pairs: 8-3 and 7-4.5, 8-5 and 7-4, 3-5 and 4.5-4, 2-2 and 3-6.
    assert (found.pairs, found.order, found.mask) == (4, 2 / 3, 2 / 4)
    assert (found.judge_apart, found.head_apart) == (2 / 4, 2 / 4)
    assert found.r2 == pytest.approx(1 - ((scores - predicted) ** 2).sum() / ((scores - 4) ** 2).sum())
    assert "48" not in "".join(found.describe()) and "66.7%" in " ".join(found.describe())


def test_what_cannot_be_said_is_said():
    alone = agreement(np.array([1.0, 2.0]), np.array([1.0, 2.0]), [0, 1], n_train=9)
    assert alone.pairs == 0 and all(math.isnan(value) for value in (alone.order, alone.mask, alone.judge_apart))
    assert "nothing to say of the mask" in alone.describe()[-1]
    equal = agreement(np.array([1.0, 1.0]), np.array([1.0, 2.0]), [0, 0], n_train=9)
    assert math.isnan(equal.r2) and math.isnan(equal.order) and equal.mask == 1.0
    assert sum("nothing to say" in sentence for sentence in equal.describe()) == 2
    tied = agreement(np.array([1.0, 2.0]), np.array([5.0, 5.0]), [0, 0], n_train=9)
    assert tied.order == 0.5 and math.isnan(tied.spearman) and tied.r2 == 1 - 25 / 0.5
    assert "R^2 -49.000" in tied.describe()[1] and "learned nothing" in tied.describe()[1]
