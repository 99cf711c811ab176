"""Learning curves: reading them from runs, and which ones can be compared."""

import math
import re
from dataclasses import replace

import pytest
import report_runs
from comparison_runs import write_run

from verl_gsd.compare.comparison import compare_curves
from verl_gsd.compare.comparison_words import caveats
from verl_gsd.compare.curves import Curve, check_comparable
from verl_gsd.compare.run_curves import NoValidationYetError, read_curve
from verl_gsd.run.messages import MessageWriter
from verl_gsd.rundir import RunDirectory


def curve(**changed):
    whole = {"label": "a", "seed": 1, "data_source": "math", "steps": (1, 2), "tokens": (10, 30), "run": "there"}
    return Curve(**whole | {"accuracy": (0.2, 0.6)} | changed)


# Reading


def test_tokens_of_all_groups_count_up_to_each_validation(tmp_path):
    run = write_run(tmp_path / "grpo" / "seed_3", [10, 20, 30, 40], {0: 0.1, 2: 0.2, 4: 0.4}, total=4)
    found = read_curve(run)
    assert (found.label, found.seed, found.data_source, found.run) == ("grpo", 3, "math", str(run))
    assert (found.steps, found.tokens, found.accuracy) == ((0, 2, 4), (0, 30, 100), (0.1, 0.2, 0.4))
    assert (found.total_steps, found.finished) == (4, True)
    assert found.validation["data.val_files"] == "test.parquet"
    assert found.validation["metric"] == "val-core/math/acc/mean@1"


def test_discarded_steps_count_neither_tokens_nor_accuracy(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20, 1000, 1000, 1000], {2: 0.2, 4: 0.9, 5: 0.9})
    write_run(run, [30, 40], {2: 0.25, 4: 0.4}, first=3, attempt=2)
    found = read_curve(run)
    assert (found.steps, found.tokens) == ((2, 4), (30, 100))
    assert found.accuracy == (0.25, 0.4), "a resume validates the weights of step 2 again"


def test_curve_ends_at_the_last_validation_and_the_run_is_unfinished(tmp_path):
    found = read_curve(write_run(tmp_path / "seed_1", [10, 20, 30], {1: 0.1, 2: 0.2}, total=5))
    assert (found.tokens, found.finished) == ((10, 30), False)
    assert read_curve(write_run(tmp_path / "seed_2", [10], {1: 0.1})).finished, "nobody said how long it is to be"


def test_a_run_that_ended_with_its_epochs_is_finished(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20, 30], {1: 0.1, 3: 0.2}, total=10)
    assert not read_curve(run).finished
    MessageWriter(RunDirectory(run).messages(1)).write("steps", "3")
    assert read_curve(run).total_steps == 3 and read_curve(run).finished
    write_run(run, [40], {4: 0.3}, first=4, attempt=2, total=10)
    MessageWriter(RunDirectory(run).messages(2)).write("steps", "6")
    assert not read_curve(run).finished, "the newest attempt has more epochs"


def test_a_rehearsal_has_no_curve(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20], {1: 0.1, 2: 0.2}, total=2)
    (run / "config.yaml").write_text("trainer: {default_local_dir: /runs/mine-rehearsal/run}")
    with pytest.raises(ValueError, match="this is a rehearsal"):
        read_curve(run)


def test_responses_are_the_prompts_of_a_validation_times_its_samples(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20], {0: 0.1, 2: 0.2}, total=2, prompts=30, exact={0: 0.1, 2: 0.2})
    assert read_curve(run).responses == 30 and read_curve(run, exact=True).responses is None
    path = run / "metrics" / "attempt_1.jsonl"
    text = path.read_text()
    path.write_text(text.replace("mean@1", "mean@8"))
    assert read_curve(run).responses == 240
    path.write_text(text.replace('"val/prompts/math": 30', '"val/prompts/math": 29', 1))
    assert read_curve(run).responses == 29, "the fewest"
    path.write_text(text.replace('"val/prompts/math": 30', '"other": 30', 1))
    assert read_curve(run).responses is None


def test_missing_accuracy_is_skipped(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20], {1: None, 2: 0.2})
    assert read_curve(run).steps == (2,)


def test_one_of_several_data_sources_must_be_chosen(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20], {2: 0.2})
    report_runs.metrics(run, [(1, {"val-core/a/b/acc/mean@4": 0.5}), (2, {"val-core/math/acc/mean@1": 0.2})])
    with pytest.raises(ValueError, match=r"a/b, math.*--source a/b"):
        read_curve(run)
    assert read_curve(run, source="a/b").accuracy == (0.5,)
    with pytest.raises(ValueError, match=r"--source c: .*a/b, math"):
        read_curve(run, source="c")


def test_exact_accuracies_of_the_laboratory_are_read_on_request(tmp_path):
    run = write_run(tmp_path / "lab" / "seed_1", [10, 10], {1: 0.4, 2: 0.6}, exact={1: 0.45, 2: 0.55})
    exact, sampled = read_curve(run, exact=True), read_curve(run)
    assert exact.accuracy == (0.45, 0.55) and sampled.accuracy == (0.4, 0.6)
    assert exact.tokens == sampled.tokens and exact.data_source == "math"
    with pytest.raises(ValueError, match="metric"):
        check_comparable([exact, sampled])


def test_runs_without_exact_accuracies_are_rejected_where_they_are_requested(tmp_path):
    run = write_run(tmp_path / "grpo" / "seed_1", [10, 10], {1: 0.4, 2: 0.6}, exact={2: 0.55})
    with pytest.raises(ValueError, match=r"no exact accuracy.*leave out --exact"):
        read_curve(run, exact=True)


def test_different_numbers_of_samples_are_rejected(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20], {})
    report_runs.metrics(run, [(1, {"val-core/a/acc/mean@4": 0.5}), (2, {"val-core/a/acc/mean@8": 0.2})])
    with pytest.raises(ValueError, match=r"val-core/a/acc/mean@4.*val-core/a/acc/mean@8"):
        read_curve(run)


@pytest.mark.parametrize(
    ("folder", "label", "seed"),
    [
        ("grpo/seed_12", "grpo", 12),
        ("runs/arithmetic-grpo-20260102-030405-seed_2", "arithmetic-grpo", 2),
        ("runs/arithmetic-grpo-20260102-030405-alpha_0.5-seed_0", "arithmetic-grpo-alpha_0.5", 0),
        ("runs/20260102-030405", "hadw", 7),
    ],
)
def test_label_and_seed_come_from_the_folder_or_the_overrides(tmp_path, folder, label, seed):
    run = write_run(tmp_path / folder, [10], {1: 0.1}, data__seed=seed)
    (run / "overrides.yaml").write_text("- task=arithmetic\n- algo=hadw\n- algorithm.gsd.alpha=1\n")
    found = read_curve(run)
    assert (found.label, found.seed) == (label, seed)
    assert read_curve(run, label="mine").label == "mine"


def test_unknown_label_or_seed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"/run: .*data\.seed"):
        read_curve(write_run(tmp_path / "run", [10], {1: 0.1}), label="a")
    with pytest.raises(ValueError, match=r"/other: .*LABEL="):
        read_curve(write_run(tmp_path / "other", [10], {1: 0.1}, data__seed=1))
    with pytest.raises(ValueError, match=r"/seed_2: .*\b2\b.*data\.seed=1"):
        read_curve(write_run(tmp_path / "seed_2", [10], {1: 0.1}, data__seed=1))


def test_run_without_a_config_has_unknown_validation_settings(tmp_path):
    run = write_run(tmp_path / "a" / "seed_1", [10], {1: 0.1})
    (run / "config.yaml").unlink()
    assert read_curve(run).validation == {"metric": "val-core/math/acc/mean@1"}


def test_run_without_a_curve_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_curve(tmp_path / "absent")
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*trainer\.default_local_dir"):
        read_curve(tmp_path)
    with pytest.raises(ValueError, match=r"untested/seed_1: .*val-core/\*/acc/mean@N.*trainer\.test_freq"):
        read_curve(write_run(tmp_path / "untested" / "seed_1", [10, 20], {}, total=2))
    with pytest.raises(NoValidationYetError, match=r"young/seed_1: .*\b2 of 9\b"):
        read_curve(write_run(tmp_path / "young" / "seed_1", [10, 20], {}, total=9))
    for total in (2, 9):  # finished, and still training
        rated = write_run(tmp_path / f"no_acc_{total}" / "seed_1", [10, 20], {}, total=total)
        report_runs.metrics(rated, [(1, {"val-core/math/reward/mean@1": 0.1})])
        with pytest.raises(ValueError, match=r"seed_1: .*mean rewards .*no accuracies.*Return acc"):
            read_curve(rated)
    stock = tmp_path / "stock" / "seed_1"
    report_runs.metrics(stock, [(1, {"val-core/math/acc/mean@1": 0.1})])
    with pytest.raises(ValueError, match=r"stock/seed_1: .*gsd_sync"):
        read_curve(stock)


def test_steps_without_records_are_named(tmp_path):
    run = write_run(tmp_path / "seed_1", [10] * 9, {3: 0.1, 8: 0.2})
    for step in (1, 4, 5, 6, 7, 8, 9):
        (run / "records" / "attempt_1" / f"step_{step:06d}.parquet").unlink()
    with pytest.raises(ValueError, match="1, 4, 5 and 3 more"):
        read_curve(run)


def test_damage_is_reported_with_file_and_line(tmp_path):
    run = write_run(tmp_path / "seed_1", [10, 20, 30], {1: 0.1, 2: 0.2})
    metrics = run / "metrics" / "attempt_1.jsonl"
    first, second, third = metrics.read_text().splitlines()
    for bad in (
        "not json",
        "[1]",
        '{"step": 2}',
        second.replace("0.2", '"much"'),
        second.replace('"step": 2', '"step": "x"'),
    ):
        metrics.write_text("\n".join([first, bad, third]) + "\n")
        with pytest.raises(ValueError, match=r"attempt_1\.jsonl: line 2\b"):
            read_curve(run)
    metrics.write_text("\n".join([first, second.replace("0.2", "1.5"), third]) + "\n")
    with pytest.raises(ValueError, match=r"seed_1: accuracy\[1\]=1\.5\b"):
        read_curve(run)
    outside = second.replace('"val-core', '"val/outside/math": 3.0, "val-core')
    metrics.write_text("\n".join([first, outside, third]) + "\n")
    with pytest.raises(ValueError, match=r"seed_1: the held-out acc of math is no accuracy"):
        read_curve(run)
    metrics.write_text("\n".join([first, outside.replace("outside/math", "outside/code"), third]) + "\n")
    assert read_curve(run).accuracy == (0.1, 0.2), "another source's values"
    metrics.write_text("\n".join([first, second, third]) + "\n")
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        read_curve(run)
    (run / "records" / "attempt_1" / "step_000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"step_000002\.parquet: "):
        read_curve(run)


# The curve itself


def test_accuracy_is_interpolated_between_validations_only():
    found = curve()
    assert [found.at(tokens) for tokens in (10, 15, 20, 30)] == pytest.approx([0.2, 0.3, 0.4, 0.6])
    assert math.isnan(found.at(9.9))
    with pytest.raises(ValueError, match=r"a seed 1: .*\b31\b.*\b30\b"):
        found.at(31)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": (1,)}, "1 steps, 2 tokens, 2 accuracies"),
        ({"steps": (), "tokens": (), "accuracy": ()}, "0 steps"),
        ({"steps": (2, 2)}, r"steps\[1\]=2: .*\b2\b"),
        ({"tokens": (10, 10)}, r"tokens\[1\]=10"),
        ({"tokens": (-1, 10)}, r"tokens\[0\]=-1"),
        ({"accuracy": (0.2, math.nan)}, r"accuracy\[1\]=nan"),
        ({"accuracy": (-0.1, 0.2)}, r"accuracy\[0\]=-0.1"),
    ],
)
def test_invalid_curves_are_rejected(changed, said):
    with pytest.raises(ValueError, match=said):
        curve(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 2, "data_source": "code"}, "^here and there: .*'math' and 'code'"),
        ({"seed": 2, "validation": {"data.val_files": "b"}}, r"^here and there: data\.val_files\b.*'a' and 'b'"),
        ({}, "^here and there: .*a seed 1.*LABEL=RUN"),
    ],
)
def test_incomparable_curves_are_rejected_by_name(changed, said):
    one = curve(run="here", validation={"data.val_files": "a", "metric": "m"})
    check_comparable([one, curve(seed=2), curve(label="b", validation={"metric": "m"})])
    with pytest.raises(ValueError, match=said):
        check_comparable([one, curve(seed=5), curve(**changed)])


def test_one_label_cannot_have_runs_of_the_laboratory_and_of_the_stack(tmp_path):
    runs = [write_run(tmp_path / "grpo" / f"seed_{seed}", [5], {1: 0.5}) for seed in (1, 2, 3)]
    RunDirectory(runs[1]).sources.write_text("verl_gsd: a\n")
    stack, lab, other = map(read_curve, runs)
    assert (stack.trained, lab.trained) == ("on the stack", "in the laboratory")
    check_comparable([stack, other, replace(lab, label="grpo in the laboratory"), replace(lab, trained="")])
    with pytest.raises(ValueError, match=r"seed_1 was trained on the stack and .*seed_2 in the laboratory.*LABEL=RUN"):
        check_comparable([stack, lab])


def settings(tmp_path, label="grpo", seed=1, **keys):
    """A curve of a run with these keys in its config."""
    shared = {
        "algorithm__gsd__alpha": 1.0,
        "actor_rollout_ref__actor__optim__lr": 0.01,
        "data__train_files": "/a/m/t.parquet",
    }
    own = {
        "data__seed": seed,
        "trainer__default_local_dir": f"/runs/seed_{seed}",
        "trainer__experiment_name": f"s{seed}",
    }
    return read_curve(write_run(tmp_path / label / f"seed_{seed}", [5], {1: 0.5}, **shared | own | keys))


def test_runs_of_one_label_must_have_the_same_settings(tmp_path):
    one, other = settings(tmp_path), settings(tmp_path, seed=2)
    third = settings(tmp_path, seed=3, actor_rollout_ref__actor__optim__lr=1e-3, algorithm__gsd__alpha=0.0)
    check_comparable([one, other, replace(third, label="other"), replace(third, settings={})])
    with pytest.raises(ValueError, match=r"seed_1 and .*seed_3 .*label grpo\b.*LABEL=RUN") as caught:
        check_comparable([one, other, third])
    said = str(caught.value)
    assert "algorithm.gsd.alpha (1.0 and 0.0)" in said and "actor_rollout_ref.actor.optim.lr (0.01 and 0.001)" in said
    assert "seed_2" not in said and "data.seed" not in said


@pytest.mark.parametrize(
    ("key", "value", "may_differ"),
    [
        ("data__train_files", "/elsewhere/m/t.parquet", True),
        ("data__train_files", "/a/other/t.parquet", False),
        ("actor_rollout_ref__rollout__seed", 7, True),
        ("actor_rollout_ref__actor__data_loader_seed", 7, True),
        ("actor_rollout_ref__ref__profiler__save_path", "/elsewhere", True),
        ("trainer__logger", ["wandb"], True),
        ("actor_rollout_ref__rollout__trace__experiment_name", "seed_2", True),
        ("trainer__total_epochs", 2, False),
        ("algorithm__gsd__hadw__eta", 0.1, False),
        ("algorithm__filter_groups__enable", True, False),
        ("algorithm__gsd__unused", None, True),
    ],
)
def test_seeds_and_paths_may_differ_between_runs_of_one_label(tmp_path, key, value, may_differ):
    curves = [settings(tmp_path), settings(tmp_path, seed=2, **{key: value})]
    if may_differ:
        check_comparable(curves)
        return
    with pytest.raises(ValueError, match=re.escape(key.replace("__", "."))):
        check_comparable(curves)


def resumed(run, **keys):
    """A run of two attempts: each trained one step, the second with other settings."""
    for attempt, other in enumerate(({}, keys), start=1):
        write_run(run, [5], {attempt: 0.5}, first=attempt, attempt=attempt, **other)
        (run / "configs").mkdir(exist_ok=True)
        (run / "configs" / f"attempt_{attempt}.yaml").write_text((run / "config.yaml").read_text())
    return run


def test_a_resume_with_another_validation_has_no_curve(tmp_path):
    key = "actor_rollout_ref__rollout__val_kwargs__n"
    run = resumed(tmp_path / "a" / "seed_1", **{key: 4})
    with pytest.raises(ValueError, match=r"up to step 1 and after it .* another .*val_kwargs\.n \(1, then 4\)"):
        read_curve(run)
    (run / "configs" / "attempt_1.yaml").unlink()
    assert read_curve(run).steps == (1, 2), "runs of older versions do not say how they began"


def test_a_resume_with_other_settings_is_said(tmp_path):
    run = resumed(tmp_path / "a" / "seed_1", actor_rollout_ref__actor__optim__lr=1e-3, data__seed=1)
    said = [text for text in caveats(compare_curves([read_curve(run)], "a")) if "resumed with other settings" in text]
    assert len(said) == 1 and "optim.lr (None up to step 1, 0.001 at the end)" in said[0] and "data.seed" not in said[0]
    assert read_curve(resumed(tmp_path / "b" / "seed_1", trainer__total_training_steps=9)).changes == ()
    decayed = {"trainer__total_training_steps": 9, "actor_rollout_ref__actor__optim__lr_scheduler_type": "cosine"}
    assert len(read_curve(resumed(tmp_path / "c" / "seed_1", **decayed)).changes) == 2


@pytest.mark.parametrize("validates", [False, True])
def test_an_attempt_that_trained_nothing_changes_no_curve(tmp_path, validates):
    """It crashed at its start, or validated the finished run once more, on other machines and with more samples."""
    run = resumed(tmp_path / "a" / "seed_1")
    before = read_curve(run)
    (run / "logs").mkdir()
    (run / "logs" / "attempt_3.log").touch()
    other = {"data__val_files": "other.parquet", "trainer__n_gpus_per_node": 1}
    report_runs.config(run, **other)
    (run / "configs" / "attempt_3.yaml").write_text((run / "config.yaml").read_text())
    if validates:
        figures = {"validation": 1, "val-core/math/acc/mean@16": 0.9, "val-core/math/acc/mean@1": 0.8}
        report_runs.metrics(run, [(2, figures)], attempt=3)
    found = read_curve(run)
    assert found == before and found.settings == before.settings


def test_home_folder_is_replaced_by_a_tilde(tmp_path, monkeypatch):
    run = write_run(tmp_path / "seed_1", [10], {1: 0.1}, total=1)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("test.parquet", str(tmp_path / "data" / "test.parquet")))
    assert read_curve(run).validation["data.val_files"] == str(tmp_path / "data" / "test.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_curve(run).validation["data.val_files"] == "~/data/test.parquet"


def test_sampling_of_held_out_prompts_is_compared(tmp_path):
    """verl samples data.val_max_samples prompts by data.seed if data.shuffle is on, and else takes the first ones."""
    chosen = {"data__val_max_samples": 64, "data__shuffle": True}
    one = read_curve(write_run(tmp_path / "a" / "seed_1", [5], {1: 0.5}, **chosen))
    other = read_curve(write_run(tmp_path / "b" / "seed_1", [5], {1: 0.5}, **chosen | {"data__shuffle": False}))
    with pytest.raises(ValueError, match=r"data\.shuffle\b.*True and False"):
        check_comparable([one, other])
    assert any("data.shuffle" in said for said in caveats(compare_curves([one], "a")))
    assert not any("data.shuffle" in said for said in caveats(compare_curves([other], "b"))), (
        "all seeds have the same prompts"
    )
    everything = chosen | {"data__val_max_samples": -1}
    for place, shuffle in enumerate((True, False), start=1):
        run = write_run(tmp_path / "c" / f"seed_{place}", [5], {1: 0.5}, **everything | {"data__shuffle": shuffle})
        assert "data.shuffle" not in read_curve(run).validation


@pytest.mark.parametrize("key", ["data__apply_chat_template_kwargs", "actor_rollout_ref__model__path"])
def test_different_prompts_or_start_models_cannot_be_compared(tmp_path, key):
    curves = [
        read_curve(write_run(tmp_path / label / "seed_1", [5], {1: 0.5}, **{key: value}))
        for label, value in (("a", "one"), ("b", "other"))
    ]
    with pytest.raises(ValueError, match=f"{key.replace('__', '.')} .*'one' and 'other'"):
        check_comparable(curves)
