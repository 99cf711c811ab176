"""DaGRPO's runs on the hardest problems of the embedded task, of which some have an expert's demonstration."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from judge_server import build_judge, serving
from running import TASK, metrics, train_through, verl_gsd

from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.openai_scorer import OpenAIScorer
from verl_gsd.records import read_records

BATCH, SIZE = 32, 8
DELTA, SAVED = 2, 2
JUDGE = "algorithm.gsd.dagrpo.judge"
#: Prompts that have an expert's demonstration; the others have what the policy gets right by itself.
SHOWN = 8
SHORT = (
    *("task=arithmetic", "hardware=cpu", f"data.train_batch_size={BATCH}", "trainer.val_before_train=false"),
    *("trainer.test_freq=-1", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    "actor_rollout_ref.actor.optim.lr=1e-5",
)


def write_problems(folder):
    """The same prompts at every step, by index: of the hardest levels, which a group may well fail.

    Prompts without an expert are of a level solved once in some fifty times: a group mostly fails. Of 24 prompts some
    seven succeed in one of three steps and fail in a later one.
    """
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    rows = pq.read_table(TASK / "train.parquet")
    levels = [extra["level"] for extra in rows["extra_info"].to_pylist()]
    failing = [n for n, level in enumerate(levels) if level in ("mixed_4", "add_8")][:SHOWN]
    succeeding = [n for n, level in enumerate(levels) if level == "mixed_3"][: BATCH - SHOWN]
    chosen = rows.take(failing + succeeding).to_pylist()
    for row in chosen[SHOWN:]:
        row["demonstration"] = None
    pq.write_table(pa.Table.from_pylist(chosen, rows.schema), folder / "train.parquet")
    return SimpleNamespace(file=folder / "train.parquet", by_index={row["extra_info"]["index"]: row for row in chosen})


def train_judged(folder, problems, *, last, killed_after=None):
    """Train on the mask and on demonstrations, judged by vLLM's own server, and read what the run wrote.

    Attributes of what is returned:
        early: what the judge's cache held when the run had been killed, or had ended.
        again: the scores that the server gave then to the questions of the first of these.
    """
    build_judge(folder / "judge")
    cache = folder / "cache.sqlite"
    with serving(folder / "judge", folder / "judge.log") as url:
        early = []

        def keep_scores():
            with ScoreCache(cache) as scores:
                early.extend(scores.rows())

        attempts, _ = train_through(
            folder / "run",
            *("algo=dagrpo", *SHORT, f"data.train_files={problems.file}", f"{JUDGE}.base_url={url}"),
            "algorithm.gsd.dagrpo.demonstrations.source=expert_or_self",
            *(f"{JUDGE}.cache={cache}", f"algorithm.gsd.dagrpo.delta={DELTA}", "algorithm.gsd.dagrpo.probe_every=2"),
            f"trainer.save_freq={SAVED}",
            last=last,
            killed_after=killed_after,
            saved=SAVED,
            between=keep_scores,
        )

        async def asked_again():
            scorer = OpenAIScorer(url, "judge")
            again = [await scorer.score(judged.question) for judged in early[:8]]
            await scorer.close()
            return again

        again = asyncio.run(asked_again())
    path = folder / "run"
    return SimpleNamespace(
        path=path,
        attempts=attempts,
        seen={step: metrics(path, attempt)[step] for step, attempt in attempts.items()},
        records=read_records(path),
        early=early,
        again=again,
        cache=cache,
    )


def shown_of_its_own(run, problems):
    """(step, steps at which it had succeeded before) of every prompt that was shown what the policy got right."""
    succeeded, shown = defaultdict(set), []
    for row in run.records.to_pylist():
        expert, earlier = problems.by_index[row["index"]]["demonstration"], succeeded[row["index"]]
        own = not expert and any(step < row["step"] for step in earlier)
        assert row["demonstrations"] == (1 if row["kind"] == "all_wrong" and (expert or own) else 0)
        if row["demonstrations"] and own:
            shown.append((row["step"], sorted(earlier)))
        if row["correct"]:
            earlier.add(row["step"])
    return shown
