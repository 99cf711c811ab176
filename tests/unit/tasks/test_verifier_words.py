r"""Kinds of answers in which a word or a sign after the value decides, and values that are only nearly equal."""

import json
from pathlib import Path

import pytest

from verl_gsd.tasks import maths

KINDS = json.loads(
    (Path(__file__).parents[2] / "support" / "verifier_pairs" / "words.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equal_answers(kind):
    for answer, reference in KINDS[kind]["equal"]:
        assert maths.compare(answer, reference).right, (answer, reference)
        assert maths.compare(reference, answer).right, (reference, answer)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_different_answers(kind):
    for answer, reference in KINDS[kind]["different"]:
        assert not maths.compare(answer, reference).right, (answer, reference)
        assert not maths.compare(reference, answer).right, (reference, answer)
