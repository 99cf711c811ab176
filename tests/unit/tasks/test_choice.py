"""The verifier for multiple choice."""

import pytest

from verl_gsd.tasks.choice import chosen_letters, compute_score, final_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"so \boxed{B}.", "B"),
        (r"\boxed{A} no: \boxed{\text{B}}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"\boxed{\mathrm{B}}", "B"),
        (r"\boxed{B. 42}", "B"),
        (r"\boxed{B: 42}", "B"),
        (r"\boxed{(B) 42}", "B"),
        (r"\boxed{$B$}", "B"),
        (r"\boxed B", "B"),
        (r"\boxed{42}. The answer is B.", None),
        (r"The answer is B. \boxed{A", None),
        (r"\boxed{BC}", None),
        (r"\boxed{A man}", None),
        (r"\boxed{K}", None),
        (r"\boxed{B = 2}", None),
        (r"\boxed{}", None),
        (r"\boxed{\rm B}", "B"),
        (r"\boxed{A, B, C}", None),
        (r"\boxed{A) or B)}", None),
        (r"\boxed{A and B}", None),
        (r"\boxed{B, a gas}", "B"),
        (r"\boxed{\text{Option B}}", "B"),
        (r"\boxed{\text{option (B)}}", "B"),
        (r"\boxed{\text{Answer: B}}", "B"),
        (r"\boxed{B \text{ (mitochondria)}}", "B"),
        (r"\boxed{\textbf{B} \; 12}", "B"),
        (r"\boxed{B \quad \text{foo}}", "B"),
        (r"\boxed{B: 5, 6}", "B"),
        (r"\boxed{A \times B}", None),
        (r"\boxed{(A) (B)}", None),
        (r"\boxed{A (B)}", None),
        (r"\boxed{(A) + (B)}", None),
        (r"\boxed{A + B}", None),
        (r"\boxed{A : 5, B : 6}", None),
        (r"\boxed{\text{Options A and B}}", None),
        ("The answer is B, I believe.", "B"),
        ("The answer is B, I.", None),
        ("The answer is (A) or (B).", None),
        (r"The answer is \(B\).", "B"),
        ("The correct option is B.", "B"),
        ("B", "B"),
        ("(B)", "B"),
        ("B cells", None),
        ("The answer is (B) since it floats.", "B"),
        ("The answer is B.", "B"),
        ("The answer is B because it floats.", "B"),
        ("The correct answer is option B\nDone.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** **(B)**", "B"),
        ("**Answer**: B", "B"),
        (r"the answer is $\text{(B)}$", "B"),
        ("Answer: A. No, it sinks. ANSWER: B", "B"),
        ("the answer is B. But the answer is a rock", "B"),
        ("The answer is A man.", None),
        ("The answer is I think unclear", None),
        ("The answer is b", None),
        ("", None),
    ],
)
def test_the_letter_that_a_response_chooses(text, letter):
    assert final_letter(text) == letter
    right = float(letter == "B")
    verdict = {"score": right, "acc": right, "unverified": 0.0, "doubtful": 0.0, "answer": letter or ""}
    assert compute_score("arc", text, "B") == verdict
    assert compute_score("arc", text, "C")["score"] == 0.0


@pytest.mark.parametrize("solution", [None, 3, "answer is " * 10**5, "\\" * 10**6, "answer:" + " " * 10**6])
def test_a_response_without_an_answer_is_wrong(solution):
    assert compute_score("arc", solution, "B") == {
        "score": 0.0,
        "acc": 0.0,
        "unverified": 0.0,
        "doubtful": 0.0,
        "answer": "",
    }


@pytest.mark.parametrize("truth", ["", "AB", "K", "b", "2", None, "(A)"])
def test_a_reference_that_is_not_a_letter_is_an_error(truth):
    with pytest.raises(ValueError, match=r"ground_truth=.*data_source=arc: "):
        compute_score("arc", r"\boxed{A}", truth)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [("(d)", ("D",)), (r"\text{(c)}", ("C",)), ("b)", ("B",)), ("[B]", ("B",)), ("d", ()), ("(k)", ()), ("(x)", ())],
)
def test_a_letter_in_brackets_may_be_small(answer, letters):
    assert chosen_letters(answer, or_with_reason=True) == letters
    assert chosen_letters(answer) == ()  # a reference (d) may be the value d
