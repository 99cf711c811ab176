"""An LLM as verifier, like xVerify (arXiv 2504.10481): a model decides whether a response is right.

The model receives the question, the response and the reference answer, in a prompt of our own
(``prompts/verdict_v1.txt``). It understands answers that no parser does, but it is slower than a comparison and a
response can mislead it. For offline use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from verl_gsd.judge.openai_client import OpenAIClient
from verl_gsd.judge.prompt import VERDICT_VERSION, build_messages, parse_verdict
from verl_gsd.judge.scorer import JudgementError, Question, Reason
from verl_gsd.judge.settings import JudgeSettings

#: Maximum length of an answer, with room for a model that reasons first. An answer that is cut off is unreadable.
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
    """Ask a model whether each response is right. Must not be called from within an event loop.

    Args:
        questions: each with a reference answer.
        base_url: URL of any server with OpenAI's chat completions API, for example http://localhost:8000/v1.
        model: the model's name on the server.
        api_key_env: the environment variable that holds the key. It may be unset if the server needs no key.
        concurrency: maximum number of calls in flight.
        timeout_s: maximum seconds per call.
        retries: maximum number of calls per question after the first one.
        on_done: called after each question with the number of questions done.

    Returns:
        One verdict per question, in their order, None where the model gave none; and the number of missing verdicts by
        reason.

    Raises:
        ValueError: a question has no reference answer (the message names its row); ``base_url`` is not a URL or
            contains credentials; the key is not valid in an HTTP header; ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} is too small. Use a whole number of 1 or more")
    for row, question in enumerate(questions):
        if not question.reference.strip():
            raise ValueError(f"row {row} (the first is 0) has no reference answer to compare the response with")
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
        for row, question in rows:  # all workers share this iterator
            try:
                verdicts[row] = await client.ask(
                    build_messages(question, VERDICT_VERSION), {"max_tokens": MAX_TOKENS}, parse_verdict
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
