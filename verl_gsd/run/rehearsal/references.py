"""Checks that a run's reward function accepts the reference answers of its data."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_gsd.errors import ConfigError
from verl_gsd.preparation.references import reference_fault
from verl_gsd.run.rehearsal.seeded_rewards import call, score_of
from verl_gsd.run.rehearsal.verdicts import Returned, returned_values
from verl_gsd.tasks.answers import has_announcement

#: Responses that state an answer, in the forms that reward functions commonly read.
FORMS = (r"\boxed{{{answer}}}", "{answer}", "#### {answer}", "<answer>{answer}</answer>", "The answer is {answer}.")
_SHOWN = 5
_KEY = "reward.custom_reward_function"


@dataclass(frozen=True)
class References:
    """The result of the check.

    Attributes:
        checked: number of rows.
        rejected: (row, reference) of those that the function accepted in no form.
        accepted_score: the lowest score of an accepted reference; None if none was accepted.
        returned: what the function returned for an empty, a wrong and a right answer to each row.
    """

    checked: int
    rejected: tuple[tuple[int, str], ...]
    accepted_score: float | None
    returned: tuple[Returned, ...] = ()

    def problem(self) -> str | None:
        """What is wrong, with the remedy; None if all references were accepted."""
        if not self.rejected:
            return None
        shown = ", ".join(f"row {row}: {truth[:60]!r}" for row, truth in self.rejected[:_SHOWN])
        forms = ", ".join(form.format(answer="A") for form in FORMS)
        return (
            f"{_KEY}: the reward function rejects {len(self.rejected)} of {self.checked} reference answers of the data "
            f"({shown}), written as {forms}. A policy cannot earn a reward on such rows. Correct or remove them, or "
            "use a reward function that reads them. If yours expects another form, check the references with it."
        )


def check_references(function: Callable[..., Any], kwargs: Mapping[str, Any], rows: Sequence[dict]) -> References:
    """Call ``function`` with the reference answer of each row, in each form until it accepts one.

    A form is accepted if the reference in it scores higher than an empty response and than a wrong answer of the same
    length in this form. Blank references are rejected. Of a reference that is a sentence or a solution, only its last
    number is put into the forms: a function that compares texts accepts the whole reference, and no response equals it.

    Args:
        kwargs: further arguments of the function, from the config.
        rows: rows in verl's columns: data_source, reward_model, extra_info.

    Raises:
        ConfigError: the function raises, or returns no finite score.
    """

    async def check_all() -> References:
        rejected, scores = [], []
        returned: list[Returned] = []

        async def score_of_response(number: int, row: dict, response: str) -> float:
            score, values = await _score(function, kwargs, row, response)
            returned.append((number, str(row["data_source"]), values))
            return score

        for number, row in enumerate(rows):
            empty, truth = await score_of_response(number, row, ""), row["reward_model"]["ground_truth"]
            # A blank reference is rejected without a form: it could equal an answer that is empty by mistake.
            answer = _stated_answer(truth)
            for form in FORMS if str(truth).strip() else ():
                score, wrong = [
                    await score_of_response(number, row, form.format(answer=text)) for text in (answer, _wrong(answer))
                ]
                if score > max(empty, wrong):
                    scores.append(score)
                    break
            else:
                rejected.append((number, str(truth)))
        return References(len(rows), tuple(rejected), min(scores, default=None), tuple(returned))

    return asyncio.run(check_all())


def _stated_answer(truth: Any) -> Any:
    """What a response would give as its answer: the reference, or the last number of a sentence or a solution."""
    text = str(truth)
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    is_solution = has_announcement(text) or reference_fault(text) == "sentence"
    return numbers[-1] if numbers and is_solution else truth


def _wrong(truth: Any) -> str:
    """A wrong answer with as many characters as the reference, for functions that also score form or length."""
    letters = str(truth)
    return ("z" if set(letters.lower()) != {"z"} else "q") * len(letters)


async def _score(
    function: Callable[..., Any], kwargs: Mapping[str, Any], row: dict, response: str
) -> tuple[float, Mapping[str, Any]]:
    """The score of a response, and all values that the function returned."""
    name = getattr(function, "__qualname__", str(function))
    try:
        result = await call(
            function,
            data_source=row["data_source"],
            solution_str=response,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=dict(row.get("extra_info") or {}) | {"num_turns": 2, "rollout_reward_scores": {}},
            **kwargs,
        )
    except Exception as error:  # the user's function can raise any error
        raise ConfigError(
            f"{_KEY}.name={name}: it raised {type(error).__name__}: {str(error)[:200]} for data_source="
            f"{row['data_source']} and the response {response[:80]!r}. Correct the function, or set {_KEY}.path to "
            "another one."
        ) from error
    score = score_of(result)
    if score is None:
        raise ConfigError(
            f"{_KEY}.name={name}: it returned {str(result)[:80]} for the response {response[:80]!r}, which is no "
            'score. Return a finite number, or a dict such as {"score": 1.0, "acc": 1.0}.'
        )
    return score, returned_values(result)
