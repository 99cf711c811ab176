"""The judge's stand-in, asked by the real client."""

import asyncio

import pytest

from verl_gsd.judge.build import build_scorer
from verl_gsd.judge.scorer import Question
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.run.rehearsal.judge_stand_in import judge_stand_in


@pytest.mark.parametrize("answer", ["choice", "json_schema", "text"])
def test_the_real_client_reads_its_scores_in_every_form(answer):
    async def scores(settings):
        scorer = build_scorer(settings)  # which asks the server for its models
        found = [await scorer.score(Question("2 + 2", "4", f"response {number}")) for number in range(12)]
        await scorer.close()
        return found

    with judge_stand_in() as judge:
        settings = JudgeSettings(base_url=judge.base_url, answer=answer, cache=None)
        found = asyncio.run(scores(settings))
        assert found == asyncio.run(scores(settings)), "the same at each time"
        assert judge.answered == 24
    assert len(set(found)) > 3 and set(found) <= set(range(11))


def test_the_server_ends_with_its_block():
    with judge_stand_in() as judge:
        pass
    with pytest.raises(ValueError, match="base_url"):
        build_scorer(JudgeSettings(base_url=judge.base_url, cache=None))
