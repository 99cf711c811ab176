r"""Finds references that are not one answer: placeholders, answers to several parts of a question, proofs, sentences.

A right response rarely has the same form, so that a policy that trains on such a row gets a wrong reward for it. The
rules are conservative: an answer is left out only if its whole text has one of the forms below. Sets, lists and
alternatives such as ``1, 2``, ``3 and 5``, ``x=2 or x=3`` or ``\pm 2`` stay, because the verifier compares sets.
"""

from __future__ import annotations

import re
from typing import Literal

from verl_gsd.tasks.answers import LONGEST_ANSWER

#: no_answer: a placeholder. several_answers: labelled answers to the parts of a question. proof: a proof. sentence: a
#: sentence about the answer, which only a response with the same words equals.
Fault = Literal["no_answer", "several_answers", "proof", "sentence"]

_PLACEHOLDERS = {
    "n/a",
    "n.a",
    "nan",
    "null",
    "tbd",
    "todo",
    "to be determined",
    "unknown",
    "omitted",
    "not available",
    "not applicable",
    "not given",
    "not provided",
    "no answer",
    "no answer given",
    "no answer provided",
    "no final answer",
    "answers may vary",
    "answers will vary",
    "answer may vary",
    "answer will vary",
    "varies",
}
#: ``see the solution``, ``See Figure 3``, ``refer to the explanation above``.
_REFERRED = re.compile(
    r"(?:please )?(?:see|refer to|look at|given in|as in)(?: the| a)?(?: full| complete| detailed)?"
    r" (?:answer|solution|explanation|proof|work|text|figure|graph|table|diagram|image|picture|above|below|attached)"
    r"(?: [\w.]+)?(?: above| below)?"
)
_NO_LETTER_OR_DIGIT = re.compile(r"[\s?.…—–_]+|-{2,}")
_PROOF = re.compile(r"proof|proved|proven|q\.?e\.?d|(?:the )?statement is (?:proved|proven)|(?:by|see)(?: the)? proof")
_PROOF_TEXT = re.compile(r"proof\s*[:.]\s*\w.*|.*(?:\bq\.?e\.?d\.?|\\blacksquare|∎)", re.DOTALL)
#: The labels of the first two parts of an answer, as in ``(a) 1 (b) 2`` or ``i) x, ii) y``. A letter or digit must be
#: between them: ``(1)(2 3)`` is a permutation.
_PARTS = re.compile(
    r"(?:part )?(?:"
    r"\(a\)|a[).:]|\(i\)|i\)|\(1\)|1\)"
    r")\s*[^()]*?[a-z0-9].*?(?:^|[\s,;.])(?:and )?(?:part )?(?:\(b\)|b[).:]|\(ii\)|ii\)|\(2\)|2\))\s*\S",
    re.DOTALL,
)
#: ``She has 115 apples.``: a sentence with a number and a verb of word problems.
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|will|can|gets?|got|makes?|made|costs?|takes?|took|needs?|needed|sells?|sold|buys?"
    r"|bought|spends?|spent|earns?|earned|pays?|paid|saves?|saved|equals|remains?)\b"
)
_WORD = re.compile(r"[a-z]{2,}")
#: Fewer words are a phrase such as ``x is 3``.
_SENTENCE_WORDS = 3
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")


def reference_fault(answer: str) -> Fault | None:
    """Why a reference is not one answer; None if it is, as far as the text tells."""
    text = " ".join(_TEXT_COMMAND.sub(r" \1 ", answer).replace("$", " ").replace("~", " ").split()).casefold()
    bare = text.strip(" .!:;()[]{}*\"'")
    if bare in _PLACEHOLDERS or _REFERRED.fullmatch(bare) or _NO_LETTER_OR_DIGIT.fullmatch(text):
        return "proof" if "proof" in bare else "no_answer"
    if _PROOF.fullmatch(bare) or _PROOF_TEXT.fullmatch(text):
        return "proof"
    if _PARTS.match(text, 0, LONGEST_ANSWER):  # its time grows with the square of the length
        return "several_answers"
    if _VERB.search(text) and len(_WORD.findall(text)) >= _SENTENCE_WORDS and any(map(str.isdigit, text)):
        return "sentence"
    return None
