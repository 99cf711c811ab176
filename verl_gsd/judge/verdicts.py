"""A model as verifier, in the manner of xVerify (arXiv 2504.10481): right or wrong by what a model reads in a response.

It is told the question, the response and the reference answer, in our own words (``prompts/verdict_v1.txt``). It is
slower than a comparison and can be argued with, and it reads answers that no parser does. For offline use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from verl_gsd.judge.openai_client import OpenAIClient
from verl_gsd.judge.prompt import VERDICT_VERSION, messages, parse_verdict
from verl_gsd.judge.scorer import JudgementError, Question, Reason
from verl_gsd.judge.settings import JudgeSettings

#: Of an answer, for a model that reasons before it decides; one that is cut off there is unreadable.
MAX_TOKENS = 1024


def verify_all(
    questions: Sequence[Question],
    *,
    base_url: str,
    model: str,
    api_key_env: str = JudgeSettings.default("api_key_env"),
    concurrency: int = JudgeSettings.default("concurrency"),
    timeout_s: float = JudgeSettings.default("timeout_s"),
    retries: int = JudgeSettings.default("retries"),
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[list[bool | None], Counter[Reason]]:
    """Whether each response is right, by a model's verdict. Not from within an event loop.

    Args:
        questions: each with a reference answer.
        base_url: of any server that speaks OpenAI's chat completions, such as http://localhost:8000/v1.
        model: as the server names it.
        api_key_env: the environment variable that has the key; unset for a server that asks for none.
        concurrency: questions asked at once.
        timeout_s: seconds that one call takes at most.
        retries: calls beyond the first for a question, at most.
        on_done: told after each question how many are done.

    Returns:
        A verdict a question, in their order, None where there is none; and how many have none, by reason.

    Raises:
        ValueError: a question has no reference answer, which is named by its row; ``base_url`` is no URL or holds
            credentials; the key cannot be one; ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency}: out of range. Set it to a whole number of 1 or more")
    for row, question in enumerate(questions):
        if not question.reference.strip():
            raise ValueError(f"row {row} (the first is 0): no reference answer, and nothing to hold a response against")
    return asyncio.run(
        _verify_all(
            questions,
            OpenAIClient(base_url, model, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries),
            concurrency,
            on_done,
        )
    )


async def _verify_all(
    questions: Sequence[Question], client: OpenAIClient, concurrency: int, on_done: Callable[[int], None]
) -> tuple[list[bool | None], Counter[Reason]]:
    verdicts: list[bool | None] = [None] * len(questions)
    failures: Counter[Reason] = Counter()
    rows = iter(enumerate(questions))
    done = 0

    async def worker() -> None:
        nonlocal done
        for row, question in rows:  # which all workers share
            try:
                verdicts[row] = await client.ask(
                    messages(question, VERDICT_VERSION), {"max_tokens": MAX_TOKENS}, parse_verdict
                )
            except JudgementError as error:
                failures[error.reason] += 1
            done += 1
            on_done(done)

    try:
        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(questions)))))
    finally:
        await client.close()
    return verdicts, failures
