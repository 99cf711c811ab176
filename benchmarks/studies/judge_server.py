"""A judge of known quality: a server with OpenAI's API that knows which responses are right.

Runs ask it as they ask any judge. The name of a model gives its quality: ``auc_0.9`` scores a right response above a
wrong one with a probability of 0.9 (``synthetic_scores``). Like a model at temperature 0, it gives the same question
the same score.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from aiohttp import web

from verl_gsd.algorithms.dagrpo.judge_calibration import synthetic_scores
from verl_gsd.judge.prompt import digest
from verl_gsd.tasks.arithmetic import compute_score

#: Fixed, because it is a word of the runs, and a run is found in the ledger by its words.
PORT = 18765
QUALITIES = (0.5, 0.7, 0.9, 1.0)
_TEXTS = re.compile(r"BEGIN (PROBLEM|REFERENCE|RESPONSE) (\S+)\n(.*?)\nEND \1 \2", re.DOTALL)


def judge_words(quality: float) -> tuple[str, ...]:
    """The words of a run whose judge has this quality. Scores are not cached: asking again is as fast."""
    judge = "algorithm.gsd.dagrpo.judge"
    return (
        f"{judge}.base_url=http://127.0.0.1:{PORT}/v1",
        f"{judge}.model={model_of(quality)}",
        f"{judge}.cache=null",
    )


def model_of(quality: float) -> str:
    return f"auc_{quality:g}"


def score(message: str, quality: float) -> int:
    """The score of the response in a judge's prompt."""
    texts = {name: text for name, _, text in _TEXTS.findall(message)}
    correct = compute_score("", texts["RESPONSE"], texts["REFERENCE"])["acc"] == 1
    key = digest(str(quality), texts["PROBLEM"], texts["RESPONSE"])
    noise = np.random.default_rng(int.from_bytes(key[:8], "big"))
    return int(synthetic_scores(np.array([correct]), quality, noise)[0])


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": model_of(quality)} for quality in QUALITIES]})


async def _answer(request: web.Request) -> web.Response:
    body: dict[str, Any] = await request.json()
    text = str(score(body["messages"][-1]["content"], float(body["model"].removeprefix("auc_"))))
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return web.json_response(
        {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
    )


@contextmanager
def serving(port: int = PORT) -> Iterator[str]:
    """The judges answer at the URL that is yielded, until the block ends.

    Raises:
        OSError: the port is taken.
    """
    app = web.Application()
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _answer)])
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None)
    loop.run_until_complete(runner.setup())
    try:
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
        address, port = runner.addresses[0]
        thread = threading.Thread(target=loop.run_forever, name="judge server", daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{port}/v1"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
    finally:
        loop.run_until_complete(runner.cleanup())
        loop.close()
