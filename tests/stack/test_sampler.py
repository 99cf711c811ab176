"""Training on the real stack with prompts drawn by disagreement: what was drawn, and shown; with ``--killed`` killed
and resumed."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from running import metrics, train_through, verl_gsd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from verl_gsd.prompts import PromptStore
from verl_gsd.records import read_records
from verl_gsd.rundir import RunDirectory

SAVED, KILLED, STEPS = 6, 7, 12
PROMPTS, BATCH, SIZE = 60, 12, 8  # a pass is of five steps


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, killed):
    """With a budget, which shares the memory of prompts."""
    run = tmp_path_factory.mktemp("sampler") / "run"
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    attempts, _ = train_through(
        run,
        *("algo=grpo", "task=arithmetic", "hardware=cpu", "sampler=disagreement", "budget=adaptive"),
        *("logger=tensorboard", "trainer.test_freq=-1", "trainer.val_before_train=false"),
        *(f"data.train_max_samples={PROMPTS}", f"data.train_batch_size={BATCH}"),
        f"trainer.save_freq={SAVED}",
        last=STEPS,
        killed_after=KILLED if killed else None,
        saved=SAVED,
    )
    seen = {step: metrics(run, attempt)[step] for step, attempt in attempts.items()}
    return SimpleNamespace(run=run, records=read_records(run).to_pylist(), metrics=seen)


def test_every_step_drew_what_the_steps_before_it_make_of_its_seed(drawn):
    """From records alone, through a memory and a sampler of its own; the resumed attempt included."""
    pytest.importorskip("verl")
    from verl.trainer.ppo.utils import create_rl_dataset

    from verl_gsd.trainer.dataset import prompt_keys
    from verl_gsd.trainer.sampler import DisagreementSampler

    config = OmegaConf.load(RunDirectory(drawn.run).config)
    data = create_rl_dataset(config.data.train_files, config.data, None, None, max_samples=PROMPTS)
    keys = prompt_keys(data, unique=True)
    settings = config.algorithm.gsd.sampler
    store, step = PromptStore(half_life=settings.half_life), 0
    sampler = DisagreementSampler(
        keys,
        store,
        count=BATCH,
        explore=settings.explore,
        seed=config.data.seed,
        step=lambda: step,
        prior=tuple(config.algorithm.gsd.budget.prior),
    )
    passes = (row for _ in range(STEPS) for row in sampler)
    for step in range(1, STEPS + 1):
        expected = {int(keys.index[next(passes)]) for _ in range(BATCH)}
        left = [row for row in drawn.records if row["step"] == step]
        assert {row["index"] for row in left} == expected and len(left) == len(expected) == BATCH
        for row in left:
            store.observe((row["data_source"], row["index"]), row["correct"], row["total"], step)


def test_prompts_are_revisited_and_those_that_disagree_more_often(drawn):
    visits = Counter(row["index"] for row in drawn.records)
    assert max(visits.values()) > STEPS * BATCH / PROMPTS, "not every prompt as often"
    assert drawn.metrics[1]["sampler/frac_new"] == 1 and drawn.metrics[STEPS]["sampler/frac_new"] < 0.5
    late = [drawn.metrics[step] for step in range(STEPS // 2, STEPS + 1)]
    more = [line["sampler/disagreement/drawn"] - line["sampler/disagreement/everywhere"] for line in late]
    assert np.mean(more) > 0
    assert all(0 < line["sampler/effective_prompts"] <= PROMPTS + 1e-6 for line in drawn.metrics.values())


def test_a_budget_beside_it_still_adds_up(drawn):
    for step in range(1, STEPS + 1):
        assert sum(row["size"] for row in drawn.records if row["step"] == step) == BATCH * SIZE


def test_tensorboard_has_a_histogram_a_step_and_tables_of_prompts(drawn):
    events = EventAccumulator(str(RunDirectory(drawn.run).tensorboard), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    for name in ("sigma", "accuracy"):
        shown = {event.step: event.histogram_value for event in events.Histograms(f"histogram/{name}")}
        assert sorted(shown) == list(range(1, STEPS + 1)) and {one.num for one in shown.values()} == {BATCH}
    sigmas = [row["std"] for row in drawn.records if row["step"] == STEPS]
    assert shown[STEPS].max <= 1 and sum(sigmas) == pytest.approx(
        events.Histograms("histogram/sigma")[-1].histogram_value.sum, rel=1e-5
    )
    tables = {
        event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("table/prompts/text_summary")
    }
    assert sorted(tables) == [SAVED, STEPS], "where it saves, which the last step is"
    visits = Counter(row["index"] for row in drawn.records)
    for row in (row for row in drawn.records if row["step"] == STEPS):
        (line,) = [text for text in tables[STEPS].splitlines() if text.startswith(f"| arithmetic | {row['index']} |")]
        assert line.split(" | ")[2] == str(visits[row["index"]]) and line.endswith(
            f"| {'&#95;'.join(row['kind'].split('_'))} | trained |"
        )


def test_what_is_drawn_and_shown_is_timed(drawn):
    assert {"timing_s/gsd_draw", "timing_s/gsd_show"} <= drawn.metrics[STEPS].keys()
