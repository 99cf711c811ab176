"""A judge on any server with OpenAI's chat completions API."""

from __future__ import annotations

from typing import Any, Literal

from verl_gsd.judge.openai_client import OpenAIClient
from verl_gsd.judge.prompt import PROMPT_VERSION, build_messages, digest, parse_score
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
    """Asks a model for a score of 0 to 10 at temperature 0. See ``OpenAIClient`` for the retries.

    Args:
        base_url: URL of the API, for example http://localhost:8000/v1.
        model: the model's name on the server.
        facts: what the server says about the model (``build.describe_model``).
        api_key_env: the environment variable that holds the key. It may be unset if the server needs no key.
        timeout_s: maximum seconds per call, from connecting to the last byte.
        retries: maximum number of calls after the first one.
        answer: ``choice``: one of the eleven numbers and nothing else, with vLLM's structured outputs.
            ``json_schema``: a JSON object, with OpenAI's structured outputs. ``text``: free text with the number on the
            last line, for a judge that reasons before it grades.
        max_tokens: maximum length of an answer in ``json_schema`` and ``text``. An answer that is cut off is
            unreadable.

    Raises:
        ValueError: ``base_url`` is not a URL, or contains credentials; or the key is not valid in an HTTP header.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        facts: str = "",
        api_key_env: str = JudgeSettings.default("api_key_env"),
        timeout_s: float = JudgeSettings.default("timeout_s"),
        retries: int = JudgeSettings.default("retries"),
        answer: Answer = JudgeSettings.default("answer"),
        max_tokens: int = 512,
    ) -> None:
        # A digest, because the identity is kept in the files of a distilled judge, which may be published.
        server = digest(base_url.rstrip("/")).hex()[:12]
        served = " ".join(filter(None, (f"openai model={model} server={server}", facts)))
        self.identity = f"{served} prompt={PROMPT_VERSION} answer={answer} temperature=0"
        self._options = _request_options(answer, max_tokens)
        self._client = OpenAIClient(base_url, model, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries)

    @property
    def calls(self) -> int:
        """Number of HTTP requests made so far."""
        return self._client.calls

    async def score(self, question: Question) -> float:
        """An integer in 0..10. Raises a JudgementError if the model gives none."""
        return await self._client.ask(build_messages(question), self._options, parse_score)

    async def close(self) -> None:
        await self._client.close()


def _request_options(answer: Answer, max_tokens: int) -> dict[str, Any]:
    """The fields of a request that determine the form of the answer."""
    if answer == "choice":
        choices = {"choice": [str(score) for score in _SCORES]}
        return {"max_tokens": 8, "extra_body": {"structured_outputs": choices}}
    if answer == "text":
        return {"max_tokens": max_tokens}
    schema = {"name": "grade", "strict": True, "schema": _SCHEMA}
    return {"max_tokens": max_tokens, "response_format": {"type": "json_schema", "json_schema": schema}}
