"""GRPO on the real stack with all that goes with it: an adaptive budget, prompts drawn by disagreement, a third party's
stage, a reference model and TensorBoard. The run is killed in a step, resumed, and its checkpoint evaluated."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import third_party
import torch
from canaries import CANARIES, files_with_a_canary
from omegaconf import OmegaConf
from running import (
    SURE,
    TASK,
    metrics,
    processes_with,
    remembered,
    replayed,
    train_through,
    validated,
    validation_kept,
    verl_gsd,
    weights,
)
from safetensors.torch import load_file

from verl_gsd.algorithms.rollouts.budget import allocate_rollouts
from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import gain_ratios
from verl_gsd.evaluation.intervals import paired_test, proportion
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.records import read_records
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import check_state

#: Every prompt is seen some six times. What is learned of prompts that are held out takes more of them and more steps:
#: drills/test_evaluation.py.
PROMPTS, BATCH, SIZE = 48, 24, 8
SAVED, KILLED, STEPS = 6, 7, 12
BUDGET = BudgetSettings(half_life=100, maximum=20)
#: Responses per prompt of a validation. With 8, a rise of .09 had a p of .008, nearly all of it from sampling.
VALIDATED = 16
ACCURACY = f"val-core/arithmetic/acc/mean@{VALIDATED}"
#: A variable in the environment of every process of the run.
MARK = "VERL_GSD_TEST_OF_GRPO"


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    run = folder / "run"
    done = verl_gsd("prepare", "arithmetic")
    assert done.returncode == 0, done.stderr
    pq.write_table(pq.read_table(TASK / "train.parquet").slice(0, PROMPTS), folder / "prompts.parquet")
    files = (f"data.train_files={folder}/prompts.parquet", f"data.val_files={folder}/prompts.parquet")
    env = third_party.install(folder) | {MARK: str(folder)} | CANARIES
    left = []
    attempts, printed = train_through(
        run,
        *("algo=trend", "task=arithmetic", "hardware=cpu", "logger=tensorboard"),
        *("budget=adaptive", f"algorithm.gsd.budget.maximum={BUDGET.maximum}", "sampler=disagreement"),
        "actor_rollout_ref.actor.use_kl_loss=true",
        *(*files, f"data.train_batch_size={BATCH}", f"actor_rollout_ref.rollout.val_kwargs.n={VALIDATED}"),
        *(f"trainer.save_freq={SAVED}", f"trainer.test_freq={STEPS}", validation_kept(run)),
        last=STEPS,
        killed_after=KILLED,
        saved=SAVED,
        resumed_with=("trainer.val_before_train=false",),
        between=lambda: left.append(processes_with(MARK, str(folder))),
        env=env,
    )
    left.append(processes_with(MARK, str(folder)))
    records = read_records(run)
    rows = {step: [row for row in records.to_pylist() if row["step"] == step] for step in attempts}
    seen = {step: metrics(run, attempt)[step] for step, attempt in attempts.items()}
    return SimpleNamespace(
        folder=folder,
        env=env,
        run=run,
        attempts=attempts,
        printed=printed,
        left=left,
        records=records,
        rows=rows,
        seen=seen,
    )


def test_a_killed_run_says_how_to_go_on_and_the_resumed_one_ends_with_its_result(grpo):
    assert f"resume={grpo.run}" in re.sub(r"\s", "", grpo.printed)
    validations = metrics(grpo.run, 2)
    table = re.sub(r"\s+", " ", grpo.printed).replace("|", "│")
    assert f"{validations[STEPS][ACCURACY]:.3f} [" in table
    assert f"steps of this attempt │ {STEPS - SAVED}" in table
    assert f"run directory {grpo.run}" in grpo.printed


def test_the_policy_gets_better_at_the_prompts_by_more_than_chance(grpo):
    before, after = validated(grpo.run, 0), validated(grpo.run, STEPS)
    assert len(before) == len(after) == PROMPTS
    for attempt, step, scores in ((1, 0, before), (2, STEPS, after)):
        assert metrics(grpo.run, attempt)[step][ACCURACY] == pytest.approx(scores.mean())
    found = paired_test(before, after)
    assert found.difference.low > 0 and found.p_value < SURE, found


def distance(first, second):
    """Between two sets of weights, over the tensors that both have."""
    return sum(float((first[name] - second[name]).square().sum()) for name in first.keys() & second.keys()) ** 0.5


def test_a_resumed_run_goes_on_where_the_checkpoint_stands(grpo):
    """The divergence from the model that the run began with grows from zero, and does not start again."""
    divergence = {step: seen["actor/kl_loss"] for step, seen in grpo.seen.items()}
    assert divergence[1] == pytest.approx(0, abs=1e-5)
    assert divergence[SAVED + 1] > divergence[SAVED // 2] > divergence[1]
    saved, last = (weights(grpo.run / f"global_step_{step}", rank_count=1)[0] for step in (SAVED, STEPS))
    start = load_file(TASK / "model" / "model.safetensors")
    assert distance(last, saved) < distance(last, start), "the last steps began with the saved weights"
    optimizer = grpo.run / f"global_step_{STEPS}" / "actor" / "optim_world_size_1_rank_0.pt"
    state = torch.load(optimizer, weights_only=False)["state"]  # ours: written by the run above
    assert {int(of["step"]) for of in state.values()} == {STEPS}, "the optimizer counts all steps, not the last six"
    assert RunDirectory(grpo.run).latest_checkpoint() == STEPS
    assert sorted(metrics(grpo.run, 2)) == list(range(SAVED + 1, STEPS + 1))
    assert sorted(metrics(grpo.run, 1))[: KILLED + 1] == list(range(KILLED + 1)), "the first attempt's are untouched"


def test_every_group_is_recorded_once_and_remembered_as_recorded(grpo):
    steps = Counter(grpo.records["step"].to_pylist())
    assert steps == dict.fromkeys(range(1, STEPS + 1), BATCH), "no step without its groups, none twice"
    attempts = dict(zip(grpo.records["step"].to_pylist(), grpo.records["attempt"].to_pylist(), strict=True))
    assert attempts == grpo.attempts
    assert set(grpo.records["fate"].to_pylist()) == {"trained"}
    for step in (SAVED, STEPS):
        assert remembered(grpo.run / f"global_step_{step}") == replayed(grpo.records, step)


def test_records_agree_with_what_verl_logs(grpo):
    for step, rows in grpo.rows.items():
        logged, sizes = grpo.seen[step], [row["size"] for row in rows]
        assert np.average([row["mean"] for row in rows], weights=sizes) == pytest.approx(logged["critic/score/mean"])
        mean_length = sum(row["tokens"] for row in rows) / sum(sizes)
        assert mean_length == pytest.approx(logged["response_length/mean"])
        assert logged["group/frac_mixed"] == np.mean([row["kind"] == "mixed" for row in rows])
        assert logged["group/count/trained"] == len(rows)
        known = {row["index"] for earlier in range(1, step + 1) for row in grpo.rows[earlier]}
        assert logged["prompts/known"] == len(known)
        assert logged["dial/gain/mean"] == pytest.approx(np.mean([row["gain"] for row in rows]))


def test_no_secret_of_the_environment_is_in_a_file_of_the_run_or_was_printed(grpo, tmp_path):
    """In config, logs, metrics, records, messages, TensorBoard's files and checkpoints, and in a report of the run."""
    done = verl_gsd("report", str(grpo.run), "--output", str(tmp_path / "report.html"), env=grpo.env)
    assert done.returncode == 0, done.stderr
    for name in ("config.yaml", "logs", "metrics", "records", "tensorboard", f"global_step_{STEPS}"):
        assert (grpo.run / name).exists(), "what is looked through"
    assert files_with_a_canary(grpo.run, tmp_path) == []
    everything_printed = grpo.printed + done.stdout + done.stderr
    assert [name for name, value in CANARIES.items() if value in everything_printed] == []


def test_a_finished_or_killed_run_leaves_no_process(grpo):
    assert grpo.left == [[], []]


def test_every_worker_and_vllms_engine_is_a_fork(grpo):
    """The fork server and its client say so in the log where a process has to import everything by itself."""
    logs = "".join(path.read_text() for path in (grpo.run / "logs").iterdir())
    assert "TaskRunner" in logs and not re.search(
        "starts as plain Python|cannot fork a worker through|Starting it as plain Python", logs
    )


def test_a_used_run_directory_is_not_gone_on_with_in_silence(grpo):
    run = grpo.run
    again = verl_gsd("train", "algo=grpo", "task=arithmetic", "hardware=cpu", f"trainer.default_local_dir={run}")
    assert again.returncode == 2 and f"resume={run}" in re.sub(r"\s", "", again.stderr)


# A third party's extension (docs/extending.md)


def trend_after(grpo, step):
    """The memory after ``step``, computed from the records alone."""
    averages, groups, decay = {}, {}, 0.5 ** (1 / 10.0)
    for earlier in range(1, step + 1):
        rates = [row["correct"] / row["total"] for row in grpo.rows[earlier]]
        averages["arithmetic"] = decay * averages.get("arithmetic", np.mean(rates)) + (1 - decay) * np.mean(rates)
        groups["arithmetic"] = groups.get("arithmetic", 0) + len(rates)
    return averages, groups


def test_the_memory_of_a_third_partys_extension_is_saved_and_restored_exactly(grpo):
    for step in (SAVED, STEPS):
        values, _ = check_state(grpo.run / f"global_step_{step}", {})
        averages, groups = trend_after(grpo, step)
        assert values["trend"]["groups"] == groups
        assert values["trend"]["averages"] == pytest.approx(averages)
        assert grpo.seen[step]["trend/average/arithmetic"] == pytest.approx(averages["arithmetic"])


def test_its_columns_are_in_the_records_of_both_attempts(grpo):
    assert str(grpo.records.schema.field("trend_groups").type) == "int64"
    for step, rows in grpo.rows.items():
        averages, groups = trend_after(grpo, step - 1)
        assert {row["trend_groups"] for row in rows} == {groups.get("arithmetic", 0)}
        before = averages.get("arithmetic")
        assert [row["trend_average"] for row in rows] == [before if before is None else pytest.approx(before)] * BATCH


def test_its_chart_is_in_the_report(grpo):
    page = grpo.folder / "report.html"
    done = verl_gsd("report", str(grpo.run), "--output", str(page), "--png", str(grpo.folder / "charts"), env=grpo.env)
    assert done.returncode == 0, done.stderr
    assert "Groups below the running accuracy count for more." in page.read_text(encoding="utf-8")
    assert (grpo.folder / "charts" / "trend-average.png").stat().st_size > 0


# Rollouts shared out


def replay(grpo):
    """(step, its records, what a fresh memory fed from the records knew of their prompts before it) of every step."""
    store = PromptStore(half_life=BUDGET.half_life)
    for step, rows in grpo.rows.items():
        yield step, rows, store.recent([(row["data_source"], row["index"]) for row in rows], step)
        for row in rows:
            store.observe((row["data_source"], row["index"]), row["correct"], row["total"], step)


def test_every_step_has_as_many_rollouts_as_with_equal_groups_and_none_is_padding(grpo):
    for step, rows in grpo.rows.items():
        assert sum(row["asked"] for row in rows) == BATCH * SIZE
        assert [row["size"] for row in rows] == [row["total"] for row in rows] == [row["asked"] for row in rows]
        seen = grpo.seen[step]
        tokens = seen["prompt_length/mean"] + seen["response_length/mean"]  # of real rows
        assert seen["global_seqlen/mean"] == pytest.approx(BATCH * SIZE * tokens), "of all rows of the one worker"


def test_sizes_are_what_earlier_visits_make_of_them_across_the_resume(grpo):
    varied = 0
    for _, rows, (correct, total) in replay(grpo):
        asked = [row["asked"] for row in rows]
        expected = allocate_rollouts(correct, total, SIZE, BUDGET)
        # Which of two prompts with equal counts has one more is the order of the batch, which records do not keep.
        pairs, again = (sorted(zip(correct, total, sizes, strict=True)) for sizes in (asked, expected.tolist()))
        assert pairs == again
        assert BUDGET.minimum <= min(asked) and max(asked) <= BUDGET.maximum
        varied += len(set(asked)) > 1
    assert set(row["asked"] for row in grpo.rows[1]) == {SIZE}, "nobody is known"
    assert varied > STEPS / 2


def test_silence_is_predicted_from_earlier_visits_in_records_and_metrics_alike(grpo):
    for step, rows, (correct, total) in replay(grpo):
        known = [place for place, count in enumerate(total) if count]
        found = [rows[place]["silent_predicted"] for place in known]
        assert {row["silent_predicted"] for place, row in enumerate(rows) if place not in known} <= {None}
        expected = posterior_silent_rate(
            np.asarray(correct)[known], np.asarray(total)[known], [rows[place]["size"] for place in known], BUDGET.prior
        )
        assert found == pytest.approx(expected.tolist())
        seen = grpo.seen[step]
        if known:
            assert seen["group/silent/predicted"] == pytest.approx(np.mean(found))
            assert seen["group/silent/observed"] == np.mean([rows[place]["kind"] != "mixed" for place in known])
        else:
            assert "group/silent/predicted" not in seen


def test_metrics_say_who_got_how_many_rollouts(grpo):
    for step, rows, (_, total) in replay(grpo):
        asked, seen = [row["asked"] for row in rows], grpo.seen[step]
        for percent in (10, 50, 90):
            assert seen[f"budget/rollouts/p{percent}"] == pytest.approx(np.percentile(asked, percent))
        assert seen["budget/share/floor"] == asked.count(BUDGET.minimum) / BATCH
        assert seen["budget/share/cap"] == asked.count(BUDGET.maximum) / BATCH
        assert seen["budget/share/known"] == np.mean(np.asarray(total) > 0)


def test_a_groups_rows_weigh_as_much_less_as_there_are_more_of_them(grpo):
    """The largest advantage of a step is that of a right answer, times n over the group's size, times the expected gain
    of n rollouts over that of the group's size (from earlier visits), times the factor of the other extension."""
    for step, rows, (correct, total) in replay(grpo):
        sizes = np.array([row["size"] for row in rows])
        counts = np.asarray(correct), np.asarray(total)
        ratios = gain_ratios(*counts, sizes, SIZE, prior=BUDGET.prior, alpha=1.0, ddof=1, eps=1e-6)
        largest = [0.0]
        for row, ratio in zip(rows, ratios, strict=True):
            size, rate = row["size"], row["correct"] / row["size"]
            if 0 < rate < 1:
                sigma = np.sqrt(rate * (1 - rate) * size / (size - 1))
                average = row["trend_average"]
                factor = 1.0 if average is None else 1 + 0.1 * (average - rate)
                largest.append(SIZE / size * ratio * (1 - rate) / (sigma + 1e-6) * factor)
        assert grpo.seen[step]["critic/advantages/max"] == pytest.approx(max(largest), rel=1e-5)
        assert 0 < grpo.seen[step]["actor/grad_norm"] < np.inf


# Prompts drawn by disagreement


def test_every_step_drew_what_the_steps_before_it_make_of_its_seed(grpo):
    """From records alone, through a memory and a sampler of its own; the resumed attempt included."""
    from verl.trainer.ppo.utils import create_rl_dataset

    from verl_gsd.algorithms.rollouts.sampler import DisagreementSampler
    from verl_gsd.run.dataset import prompt_keys

    config = OmegaConf.load(RunDirectory(grpo.run).config)
    data = create_rl_dataset(config.data.train_files, config.data, None, None)
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
    for step, rows in grpo.rows.items():
        expected = {int(keys.index[next(passes)]) for _ in range(BATCH)}
        assert {row["index"] for row in rows} == expected and len(rows) == len(expected) == BATCH
        for row in rows:
            store.observe((row["data_source"], row["index"]), row["correct"], row["total"], step)


def test_prompts_are_revisited_and_those_that_disagree_more_often(grpo):
    visits = Counter(grpo.records["index"].to_pylist())
    assert max(visits.values()) > STEPS * BATCH / PROMPTS, "not every prompt as often"
    assert grpo.seen[1]["sampler/frac_new"] == 1 and grpo.seen[STEPS]["sampler/frac_new"] < 0.5
    late = [grpo.seen[step] for step in range(STEPS // 2, STEPS + 1)]
    more = [line["sampler/disagreement/drawn"] - line["sampler/disagreement/everywhere"] for line in late]
    assert np.mean(more) > 0
    assert all(0 < line["sampler/effective_prompts"] <= PROMPTS + 1e-6 for line in grpo.seen.values())


# TensorBoard


@pytest.fixture(scope="module")
def board(grpo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"tensors": 0, "histograms": 0, "scalars": 0}
    return EventAccumulator(str(RunDirectory(grpo.run).tensorboard), size_guidance=everything).Reload()


def test_tensorboard_has_the_same_scalars(grpo, board):
    for name in (
        "critic/score/mean",
        "group/frac_mixed",
        "timing_s/gsd_read",
        "timing_s/gsd_draw",
        "timing_s/gsd_show",
    ):
        logged = {event.step: event.value for event in board.Scalars(name)}
        assert {step: logged[step] for step in (SAVED, STEPS)} == pytest.approx(
            {step: grpo.seen[step][name] for step in (SAVED, STEPS)}
        )


def test_tensorboard_has_a_histogram_a_step_and_tables_of_prompts(grpo, board):
    for name in ("sigma", "accuracy"):
        shown = {event.step: event.histogram_value for event in board.Histograms(f"histogram/{name}")}
        assert sorted(shown) == list(range(1, STEPS + 1)) and {one.num for one in shown.values()} == {BATCH}
    sigmas = [row["std"] for row in grpo.rows[STEPS]]
    assert sum(sigmas) == pytest.approx(board.Histograms("histogram/sigma")[-1].histogram_value.sum, rel=1e-5)
    tables = {
        event.step: event.tensor_proto.string_val[0].decode() for event in board.Tensors("table/prompts/text_summary")
    }
    assert sorted(tables) == [SAVED, STEPS], "where it saves, which the last step is"
    visits = Counter(grpo.records["index"].to_pylist())
    for row in grpo.rows[STEPS]:
        (line,) = [text for text in tables[STEPS].splitlines() if text.startswith(f"| arithmetic | {row['index']} |")]
        assert line.split(" | ")[2] == str(visits[row["index"]])
        assert line.endswith(f"| {'&#95;'.join(row['kind'].split('_'))} | trained |")


# The checkpoint, evaluated


SAMPLES = 8


@pytest.fixture(scope="module")
def evaluated(grpo, tmp_path_factory):
    """(what was found of the checkpoint on the run's prompts as a table of a user's own, what was printed)."""
    folder = tmp_path_factory.mktemp("evaluated")
    with (folder / "sums.jsonl").open("w") as table:
        for row in pq.read_table(grpo.folder / "prompts.parquet").to_pylist():
            answer = row["reward_model"]["ground_truth"]
            table.write(json.dumps({"problem": row["prompt"][0]["content"], "answer": answer}) + "\n")
    table = ("--input", str(folder / "sums.jsonl"), "--split", "test", "--suffix", "", "--data", str(folder))
    made = verl_gsd("prepare", "sums", *table, "--model", str(TASK / "model"))
    assert made.returncode == 0, made.stderr
    done = verl_gsd(
        *("eval", "--checkpoint", str(grpo.run / f"global_step_{STEPS}"), "--bench", "sums", "--data", str(folder)),
        *("--samples", str(SAMPLES), "--temperature", "1", "--output", str(folder / "found")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found" / "results.json").read_text())["sums"], done.stdout


def test_the_evaluation_agrees_with_the_runs_own_validation(grpo, evaluated):
    """On the same weights, bfloat16 aside, and on the same problems at the same temperature."""
    count = PROMPTS * VALIDATED
    validation = proportion(round(metrics(grpo.run, 2)[STEPS][ACCURACY] * count), count)
    found, _ = evaluated
    assert found["average"]["low"] < validation.high and validation.low < found["average"]["high"]


def test_more_samples_solve_more_questions_and_every_answer_was_verified(evaluated):
    found, printed = evaluated
    assert found["pass_at_k"]["4"]["value"] > found["pass_at_k"]["2"]["value"] > found["average"]["value"]
    assert (found["questions"], found["unverified"]) == (PROMPTS, 0) and f"avg@{SAMPLES}" in printed


# The embedded task


def test_solve_rates_spread_as_group_relative_training_needs():
    """16 samples at temperature 1 for each of 256 prompts of the training set."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_gsd.tasks.arithmetic import compute_score

    assert verl_gsd("prepare", "arithmetic").returncode == 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TASK / "model")
    tokenizer = AutoTokenizer.from_pretrained(TASK / "model")
    tokenizer.padding_side = "left"
    rows = pq.read_table(TASK / "train.parquet").to_pylist()[:256]
    text = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    batch = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
    tokens = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=4, num_return_sequences=16
    )
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    truth = [row["reward_model"]["ground_truth"] for row in rows for _ in range(16)]
    right = [compute_score("arithmetic", answer, wanted)["acc"] for answer, wanted in zip(answers, truth, strict=True)]
    rates = torch.tensor(right).view(-1, 16).mean(dim=1)
    assert 0.3 <= rates.mean() <= 0.6
    assert (rates < 0.1).float().mean() >= 0.15
    assert (rates > 0.9).float().mean() >= 0.15
