"""Signs of trouble that the papers name: a run on disk that has the sign, and the same run without it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import report_runs

from verl_gsd.report.build import read_runs
from verl_gsd.report.findings import collect_findings
from verl_gsd.report.sections.policy import accuracy
from verl_gsd.report.sections.summary import _without_records, findings_section, runs_section
from verl_gsd.report.sections.view import RunView
from verl_gsd.report.steps import source_column, sources_of, step_table

STEPS, GROUPS, SIZE = 60, 24, 8

#: Title of each finding.
SPIKES = "The gradient norm spikes"
OSCILLATES = "The loss oscillates, and the reward does not grow"
SHORT = "Responses become very short"
ENTROPY = "The policy's entropy collapses"
SHIFT = "The verdicts of the verifier shift"
UNVERIFIED = "The verifier can verify fewer and fewer responses"
JUDGE = "The judge's scores drift"


def spike(figures):
    figures["actor/grad_norm"][40] = 1e10


def oscillate(figures):
    figures["actor/pg_loss"][STEPS // 2 :] *= 20


def shorten(figures):
    figures["tokens"][STEPS // 2 :] //= 4


def lose_entropy(figures):
    figures["actor/entropy"] *= np.geomspace(1, 0.01, STEPS)


def shift_verdicts(figures):
    figures["solve_rate"][STEPS // 2 :] *= 0.1


def lose_verdicts(figures):
    figures["verifier/unverified"] += np.linspace(0, 0.3, STEPS)


def shift_scores(figures):
    figures["judge_score"][STEPS // 2 :] += 3


def contradict(figures):
    figures["contradicted"] = np.linspace(0, 5, STEPS)


#: Kind of verifier -> reward of a wrong response, and whether verl gets an ``acc``. It takes a plain number for one.
VERIFIERS = {"acc of 0 and 1": (0.0, True), "plain numbers of 1 and -1": (-1.0, True), "no acc": (0.0, False)}


def written_run(folder, change=None, seed=0, verifier="acc of 0 and 1", filtered=False, **config):
    """A run of a policy that does not change, with the noise that sampling and updates have.

    Args:
        verifier: one of ``VERIFIERS``.
        filtered: whether dynamic sampling evicts unanimous groups.
        config: of ``report_runs.config``.
    """
    wrong, has_accuracy = VERIFIERS[verifier]
    rng = np.random.default_rng(seed)
    figures = {
        "solve_rate": np.full(STEPS, 0.5),
        "tokens": np.full(STEPS, 400),
        "judge_score": rng.normal(5, 0.2, STEPS),
        "contradicted": np.full(STEPS, 1.0),
        "actor/grad_norm": 0.2 * np.exp(0.6 * rng.normal(size=STEPS)),
        "actor/pg_loss": 0.01 * rng.standard_t(3, STEPS),
        "actor/entropy": 0.4 * np.exp(0.1 * rng.normal(size=STEPS)),
        "verifier/unverified": rng.binomial(GROUPS * SIZE, 0.01, STEPS) / (GROUPS * SIZE),
    }
    if change is not None:
        change(figures)
    lines = []
    for row in range(STEPS):
        left = []
        for index in range(GROUPS):
            rewards = np.where(rng.random(SIZE) < figures["solve_rate"][row], 1.0, wrong)
            values = {"judge_score": figures["judge_score"][row], "dagrpo_pairs": 12, "dagrpo_pairs_kept": 8}
            values["dagrpo_pairs_contradicted"] = int(rng.poisson(figures["contradicted"][row]))
            tokens = int(figures["tokens"][row] + rng.integers(-50, 50))
            visit = report_runs.group(rewards, tokens=tokens, index=index)
            visit = visit if has_accuracy else replace(visit, accuracies=np.full(SIZE, np.nan))
            fate = "filtered" if filtered and rewards.min() == rewards.max() else "trained"
            left.append((visit, fate, values))
        report_runs.records(folder, row + 1, *left)
        lines.append((row + 1, {name: values[row] for name, values in figures.items() if "/" in name}))
        trained = [visit.rewards.mean() for visit, fate, _ in left if fate == "trained"]
        lines[-1][1]["critic/score/mean"] = float(np.mean(trained))
    report_runs.metrics(folder, lines)
    report_runs.config(folder, data__shuffle=True, **config)
    return folder


def findings_of(folder):
    (run,) = read_runs([folder])
    return collect_findings(step_table(run), run.config)


MODE = "actor_rollout_ref__actor__loss_agg_mode"


def shorter_responses(figures):
    """verl's metric of a policy whose entropy per token stays, and whose responses become shorter."""
    figures["actor/entropy"] *= np.geomspace(1, 0.01, STEPS)
    figures["policy/entropy"] = 0.4 * np.ones(STEPS)


def hidden_collapse(figures):
    """verl's metric of a policy whose entropy per token falls, and whose responses become longer."""
    figures["policy/entropy"] = 0.4 * np.geomspace(1, 0.01, STEPS)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize(("change", "collapses"), [(shorter_responses, False), (hidden_collapse, True)])
def test_the_entropy_of_a_token_is_judged_whatever_the_loss_averages(tmp_path, mode, change, collapses):
    run = written_run(tmp_path / "run", change, **{MODE: mode})
    assert (ENTROPY in [finding.title for finding in findings_of(run)]) == collapses


@pytest.mark.parametrize(
    ("mode", "is_per_token"),
    [
        (None, True),
        ("token-mean", True),
        ("seq-mean-token-mean", True),
        ("seq-mean-token-sum", False),
        ("seq-mean-token-sum-norm", False),
    ],
)
def test_without_our_metric_verls_is_used_only_if_it_is_per_token(tmp_path, mode, is_per_token):
    run = written_run(tmp_path / "run", lose_entropy, **({MODE: mode} if mode else {}))
    assert (ENTROPY in [finding.title for finding in findings_of(run)]) == is_per_token


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (spike, SPIKES),
        (oscillate, OSCILLATES),
        (shorten, SHORT),
        (lose_entropy, ENTROPY),
        (shift_verdicts, SHIFT),
        (lose_verdicts, UNVERIFIED),
        (shift_scores, JUDGE),
        (contradict, JUDGE),
    ],
)
def test_a_run_with_a_sign_of_trouble_has_its_finding_with_a_remedy(tmp_path, change, title):
    by_title = {finding.title: finding for finding in findings_of(written_run(tmp_path / "run", change))}
    assert by_title[title].overrides
    assert "nan" not in by_title[title].text


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_has_none_of_the_signs(tmp_path, seed, verifier):
    run = written_run(tmp_path / "run", seed=seed, verifier=verifier)
    assert [finding.title for finding in findings_of(run)] == []


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_verifier_that_breaks_is_found_whatever_it_returns(tmp_path, verifier):
    found = findings_of(written_run(tmp_path / "run", shift_verdicts, verifier=verifier))
    (finding,) = [finding for finding in found if finding.title == SHIFT]
    assert ("mean reward" in finding.text) == (verifier != "acc of 0 and 1")


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("grows", [True, False])
def test_dynamic_sampling_does_not_hide_that_the_reward_grows(tmp_path, verifier, grows):
    """It keeps the reward of the batches constant."""

    def change(figures):
        oscillate(figures)
        if grows:
            figures["solve_rate"] = np.linspace(0.2, 0.8, STEPS)

    found = findings_of(written_run(tmp_path / "run", change, verifier=verifier, filtered=True))
    assert [finding.title for finding in found] == ([] if grows else [OSCILLATES])


def test_a_page_says_what_it_did_not_check_without_accuracies(tmp_path):
    for verifier in VERIFIERS:
        (run,) = read_runs([written_run(tmp_path / verifier, verifier=verifier)])
        texts = " ".join(findings_section({"run": RunView.of(run)}).text)
        assert ("There is no accuracy" in texts and "Return acc" in texts) == (verifier != "acc of 0 and 1")


def test_a_gradient_that_is_not_finite_is_counted(tmp_path):
    def lose_gradients(figures):
        figures["actor/grad_norm"] = [
            None if row in (10, 20) else value for row, value in enumerate(figures["actor/grad_norm"])
        ]

    (finding,) = findings_of(written_run(tmp_path / "run", lose_gradients))
    assert finding.title == SPIKES and "not finite at 2 steps" in finding.text


def test_a_held_out_reward_is_drawn_and_named_where_there_is_no_accuracy(tmp_path):
    run = written_run(tmp_path / "run", verifier="no acc")
    held_out = [(step, {"validation": 1, "val-core/math/reward/mean@1": 0.01 * step}) for step in range(0, STEPS, 5)]
    (run / "metrics" / "attempt_2.jsonl").write_text(
        "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in held_out)
    )
    (of_run,) = read_runs([run])
    views = {"run": RunView.of(of_run)}
    section = accuracy(views)
    assert [panel.title for panel in section.panels] == ["Held out: math", "Rollouts"]
    assert "no accuracies, because the verifier returned no acc" in " ".join(section.text)
    (row,) = runs_section(views).table.rows
    assert row[-1] == "reward 0.000\u00a0to\u00a00.550"


def run_of_sources(folder, scales, *, breaks=True, has_accuracy=True):
    """A run in which the verifier of ``maths``, one of several data sources, breaks after half of the steps, or none.

    Args:
        scales: data source -> reward of a right response.
    """
    rng, lines, steps = np.random.default_rng(0), [], 50
    for step in range(1, steps + 1):
        is_broken, left = breaks and step > steps // 2, []
        for index in range(24 * len(scales)):
            source = list(scales)[index % len(scales)]
            solve_rate = 0.02 if is_broken and source == "maths" else rng.beta(2, 2)
            verdicts = (rng.random(SIZE) < solve_rate).astype(float)
            visit = report_runs.group(verdicts * scales[source], source=source, index=index)
            accuracies = verdicts if has_accuracy else np.full(SIZE, np.nan)
            left.append((replace(visit, accuracies=accuracies), "trained"))
        report_runs.records(folder, step, *left)
        level = (0.1 if is_broken else 0.8) + rng.normal(0, 0.01)
        figure = "acc" if has_accuracy else "reward"
        lines.append((step, {f"val-core/maths/{figure}/mean@1": level, "val/prompts/maths": 500.0}))
    report_runs.metrics(folder, lines)
    report_runs.config(folder, data__shuffle=True)
    return folder


@pytest.mark.parametrize("has_accuracy", [True, False])
def test_a_verifier_that_breaks_for_one_of_several_data_sources_is_found(tmp_path, has_accuracy):
    """The accuracy of all rollouts changes by less than the threshold."""
    sources = dict.fromkeys(("code", "maths", "logic", "science"), 1.0)
    found = findings_of(run_of_sources(tmp_path / "run", sources, has_accuracy=has_accuracy))
    (finding,) = [finding for finding in found if finding.title == SHIFT]
    figure = "accuracy" if has_accuracy else "mean reward"
    assert f", the {figure} of the rollouts of maths changed at once from 0.5" in finding.text
    assert finding.text.count("At step") == 1, "the others did not change"


def test_data_sources_that_do_not_change_have_no_finding(tmp_path):
    sources = dict.fromkeys(("code", "maths", "logic", "science"), 1.0)
    assert findings_of(run_of_sources(tmp_path / "run", sources, breaks=False)) == []


def test_the_rewards_of_another_data_source_do_not_hide_a_fall(tmp_path):
    """Points of code, from 0 to 100, made every fall of a reward from 0 to 1 look small."""
    found = findings_of(run_of_sources(tmp_path / "run", {"maths": 1.0, "code": 100.0}, has_accuracy=False))
    titles = [finding.title for finding in found]
    assert "Held-out reward fell: maths" in titles and SHIFT in titles


def test_a_source_of_few_groups_is_not_compared(tmp_path):
    report_runs.records(
        tmp_path,
        1,
        *[(report_runs.group([1, 0], source="maths", index=index), "trained") for index in range(150)],
        (report_runs.group([1, 1, 0, 0, 0], source="code"), "trained"),
        (report_runs.group([1, 0, 0], source="code", index=8), "trained"),
        (report_runs.group([], source="logic"), "failed"),
    )
    report_runs.metrics(tmp_path, [(1, {})])
    (run,) = read_runs([tmp_path])
    table = step_table(run)
    assert sources_of(table) == ["maths", "code"]
    mean = (2 / 5 + 1 / 3) / 2  # over prompts, whose numbers of rollouts differ
    assert table[source_column("accuracy", "code")] == pytest.approx(mean)
    assert table[source_column("reward", "code")] == pytest.approx(mean)
    assert table[source_column("reward_spread", "code")] == pytest.approx(np.sqrt(mean * (1 - mean)))
    assert table[source_column("unrated", "code")] == 0


@pytest.mark.parametrize(
    ("mode", "advised"), [("sync", True), ("gsd_sync", False), ("gsd_separate_async", False), (None, True)]
)
def test_a_run_whose_first_step_has_not_ended_is_not_told_to_set_the_mode_that_it_has(mode, advised):
    notice = _without_records("", {} if mode is None else {"trainer.v1.trainer_mode": mode})
    assert bool(notice.overrides) is advised
    assert ("no step has ended yet" in notice.text) is not advised
