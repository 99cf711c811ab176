"""A judge behind HTTP: any server that speaks OpenAI's chat completions."""

from __future__ import annotations

from typing import Any, Literal

from verl_gsd.judge.openai_client import OpenAIClient
from verl_gsd.judge.prompt import PROMPT_VERSION, messages, parse_score
from verl_gsd.judge.scorer import HIGHEST, LOWEST, Question
from verl_gsd.judge.settings import JudgeSettings

Answer = Literal["choice", "json_schema", "text"]

_SCORES = list(range(LOWEST, HIGHEST + 1))
_SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "enum": _SCORES}},
    "required": ["score"],
    "additionalProperties": False,
}


class OpenAIScorer:
    """Asks a model behind HTTP for a grade of 0 to 10, at temperature 0; how often, ``OpenAIClient`` says.

    Args:
        base_url: where the API is, such as http://localhost:8000/v1.
        model: as the server names it.
        api_key_env: the environment variable that has the key; unset for a server that asks for none.
        timeout_s: seconds one call takes at most, from connecting to the last byte.
        retries: calls beyond the first, at most.
        answer: ``choice``: one of the eleven numbers and nothing else, by vLLM's structured outputs. ``json_schema``:
            an object of OpenAI's structured outputs. ``text``: free, the number on the last line, for a judge that
            reasons before it grades.
        max_tokens: of an answer in ``json_schema`` and ``text``; one that was cut off there is unreadable.

    Raises:
        ValueError: ``base_url`` is no URL, or holds credentials; or the key cannot be part of a header.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = JudgeSettings.default("api_key_env"),
        timeout_s: float = JudgeSettings.default("timeout_s"),
        retries: int = JudgeSettings.default("retries"),
        answer: Answer = JudgeSettings.default("answer"),
        max_tokens: int = 512,
    ) -> None:
        self.identity = f"openai model={model} prompt={PROMPT_VERSION} answer={answer} temperature=0"
        self._form = _constraint(answer, max_tokens)
        self._client = OpenAIClient(base_url, model, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries)

    @property
    def calls(self) -> int:
        """HTTP requests made so far."""
        return self._client.calls

    async def score(self, question: Question) -> float:
        """An integer 0..10; JudgementError once it cannot be had."""
        return await self._client.ask(messages(question), self._form, parse_score)

    async def close(self) -> None:
        await self._client.close()


def _constraint(answer: Answer, max_tokens: int) -> dict[str, Any]:
    """The part of a request that says what form the answer has."""
    if answer == "choice":
        choices = {"choice": [str(score) for score in _SCORES]}
        return {"max_tokens": 8, "extra_body": {"structured_outputs": choices}}
    if answer == "text":
        return {"max_tokens": max_tokens}
    schema = {"name": "grade", "strict": True, "schema": _SCHEMA}
    return {"max_tokens": max_tokens, "response_format": {"type": "json_schema", "json_schema": schema}}
