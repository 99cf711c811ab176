"""HA-DW's mathematics: unit vectors, closed forms against enumeration, the anchors' habits, sources."""

import itertools
import json
import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.special
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_gsd import chain, extension
from verl_gsd.algorithms.hadw.anchors import AnchorBank, FixedAnchor, HardAnchor, SoftAnchor
from verl_gsd.algorithms.hadw.bias import baseline_bias, bias_by_rate
from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.dial import dial_advantage
from verl_gsd.extension import ROLLOUTS, Visits
from verl_gsd.groups import Group, Member
from verl_gsd.records import LeftGroup, step_records

ANCHORS = [SoftAnchor, HardAnchor, lambda: SoftAnchor(floor=0, cap=1, seeds=2), lambda: FixedAnchor(0.4)]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1, 0, 0, 0], [2.76718, -0.45805, -0.45805, -0.45805]), ([1, 1, 1, 0], [0.55946, 0.55946, 0.55946, -2.26558])],
)
def test_unit_vectors(rewards, expected):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    advantages = dial_advantage(rewards, [0] * 4, eps=0)
    phi = hadw_factor(advantages, rewards.mean().expand(4), 0.6)
    assert (advantages * phi).tolist() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("accuracy", "right", "wrong"),
    [(0.2, math.exp(0.4), math.exp(-0.4)), (0.9, math.exp(-0.3), math.exp(0.3)), (0.6, 1, 1)],
)
def test_the_four_cells(accuracy, right, wrong):
    phi = hadw_factor(torch.tensor([2.0, -0.5, 0.0]), torch.full((3,), accuracy), 0.6, lambda_scale=1.5)
    assert phi.tolist() == pytest.approx([1.5 * right, 1.5 * wrong, 1.5])


def test_before_anything_was_observed_the_factor_is_one():
    phi = hadw_factor(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5]), torch.tensor([math.nan, 0.5]))
    assert phi.tolist() == pytest.approx([1.0, 1.3])


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan])
def test_an_accuracy_out_of_range_is_named_where_it_matters(accuracy):
    accuracies = torch.tensor([accuracy, 0.5, accuracy])
    with pytest.raises(ValueError, match=r"group_accuracy\[2\]"):
        hadw_factor(torch.tensor([0.0, 1.0, 1.0]), accuracies, 0.5)
    assert hadw_factor(torch.tensor([0.0, 1.0, 0.0]), accuracies, 0.5)[1] > 0


def expected_baseline(p, size):
    """E[p_hat | mixed] by enumeration."""
    k = np.arange(1, size)
    weight = scipy.special.comb(size, k) * p**k * (1 - p) ** (size - k)
    return weight @ (k / size) / weight.sum()


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.5, 0.9])
def test_lemma_2_and_theorem_1(p, size):
    mixed = 1 - p**size - (1 - p) ** size
    bias = (p * (1 - p) ** size + p ** (size + 1) - p**size) / mixed  # A - E[A_hat | S]
    assert bias == pytest.approx(expected_baseline(p, size) - p, abs=1e-12)
    assert np.sign(round(bias, 12)) == np.sign(0.5 - p)

    assert baseline_bias(p, size) == pytest.approx(expected_baseline(p, size) - p, abs=1e-12)


def test_bias_at_group_size_eight():
    figures = [expected_baseline(p, 8) - p for p in (0.01, 0.05, 0.1, 0.2, 0.25, 0.4)]
    assert np.round(figures, 3).tolist() == [0.119, 0.099, 0.076, 0.040, 0.028, 0.006]


@pytest.mark.parametrize(
    ("upper", "figures"), [(0.25, [1.000, 1.000, 0.8278, 0.7811]), (0.5, [1.000, 0.7770, 0.6897, 0.6409])]
)
def test_theorem_2_on_average(upper, figures):
    """How often a hard prompt's baseline is above its rate, p uniform on (0, upper), at eps = 0."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    rates = upper * (nodes + 1) / 2
    for size, figure in zip((2, 4, 6, 8), figures, strict=True):
        above = []
        for p in rates:
            k = np.arange(1, size)
            weight = scipy.special.comb(size, k) * p**k * (1 - p) ** (size - k)
            above.append(weight[k > size * p].sum() / weight.sum())
        assert weights @ np.array(above) / 2 == pytest.approx(figure, abs=2e-3)


@pytest.mark.parametrize("make", ANCHORS)
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.just(8)), max_size=40), st.integers(0, 40))
def test_a_restored_anchor_goes_on_bit_for_bit(make, batches, cut):
    whole, first = make(), make()
    for batch in batches:
        whole.observe(*batch)
    for batch in batches[:cut]:
        first.observe(*batch)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[cut:]:
        second.observe(*batch)
    assert second.value == whole.value and second.state_dict() == whole.state_dict()
    rates = [correct / total for correct, total in batches]
    if isinstance(whole, FixedAnchor):
        assert whole.value == 0.4
    elif rates:
        assert min(rates) - 1e-12 <= whole.value <= max(rates) + 1e-12
    else:
        assert whole.value is None


def test_the_first_batch_seeds_and_the_hard_anchor_is_a_moving_mean():
    accuracies = [0.5, 0.25, 1.0, 0.0]
    anchor = HardAnchor(window=3)
    assert anchor.value is None
    values = []
    for accuracy in accuracies:
        anchor.observe(accuracy * 8, 8)
        values.append(anchor.value)
    assert values == pytest.approx([0.5, 0.375, 1.75 / 3, 1.25 / 3])
    soft = SoftAnchor()
    soft.observe(4, 8)
    assert soft.value == 0.5


def test_the_papers_rule_freezes_and_a_floor_unfreezes_it():
    frozen, floored = SoftAnchor(floor=0, cap=1, seeds=2), SoftAnchor()
    for anchor in (frozen, floored):
        for _ in range(12):
            anchor.observe(0.7 * 7, 7)  # a rate whose float standard deviation over equal values is not 0
        for _ in range(200):
            anchor.observe(1, 7)
    assert frozen.value == pytest.approx(0.7) and frozen.rate == 0
    assert floored.value == pytest.approx(1 / 7, abs=1e-3)


@pytest.mark.parametrize("make", [SoftAnchor, HardAnchor])
@pytest.mark.parametrize(("responses", "spread"), [(16, 0.091), (64, 0.045), (256, 0.022)])
def test_noise_on_stationary_batches(make, responses, spread):
    """Groups of eight from prompts of which most are nearly always or nearly never solved."""
    rng = np.random.default_rng(0)
    anchor, values = make(), []
    for _ in range(4_000):
        rates = rng.beta(0.4, 0.4, responses // 8)
        anchor.observe(int(rng.binomial(8, rates).sum()), responses)
        values.append(anchor.value)
    assert np.std(values[100:]) == pytest.approx(spread, rel=0.12)


def test_lag_on_a_ramp():
    anchor, lags = SoftAnchor(), []
    for accuracy in np.linspace(0.3, 0.7, 200):
        anchor.observe(accuracy * 8, 8)
        lags.append(accuracy - anchor.value)
    assert max(lags) == pytest.approx(0.026, abs=0.002)


def test_sources_have_anchors_of_their_own_once_they_have_shown_enough():
    bank = AnchorBank(HardAnchor, n_min=64)
    assert bank.value("easy") is None
    bank.observe([("easy", 28, 32), ("hard", 8, 32), ("hard", 0, 0)])
    assert bank.value("easy") == bank.value("hard") == bank.value("unseen") == 36 / 64
    bank.observe([("easy", 28, 32), ("hard", 8, 32)])
    assert (bank.value("easy"), bank.value("hard")) == (28 / 32, 8 / 32)
    bank.observe([])
    restored = AnchorBank(HardAnchor, n_min=64)
    restored.load_state_dict(json.loads(json.dumps(bank.state_dict())))
    assert [restored.value(name) for name in ("easy", "hard", "unseen")] == [28 / 32, 8 / 32, 36 / 64]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FixedAnchor(1.5), r"\b1\.5\b.*\b1\b"),
        (lambda: HardAnchor(0), r"window.*\b0\b"),
        (lambda: SoftAnchor(floor=0.3, cap=0.2), "floor=0.3, cap=0.2"),
        (lambda: HardAnchor().observe(9, 8), r"\b9\b.*\b8\b"),
        (lambda: SoftAnchor().observe(0, 0), r"\b0\b.*\b0\b"),
        (lambda: HardAnchor().observe(math.nan, 8), r"\bnan\b.*\b8\b"),
        (lambda: hadw_factor(torch.ones(1), torch.ones(1), 0.5, lambda_scale=0), "lambda_scale=0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


UIDS = itertools.count()


def group(correct, size=8, source="math", index=0):
    accuracies = np.array([1.0] * correct + [0.0] * (size - correct))
    return Group(f"uid{next(UIDS)}", source, index, accuracies, accuracies, np.ones(size, np.int64))


def chained(hadw, groups, section, left=(), alpha=1.0):
    """Advantages of a batch, a row a response, through the chain as a trainer runs it."""
    rewards = torch.from_numpy(np.concatenate([entry.rewards for entry in groups]))
    index = np.repeat(np.arange(len(groups)), [len(entry.rewards) for entry in groups])
    gsd = {"alpha": alpha, "ddof": 1, "eps": 1e-6, "hadw": section}
    columns = hadw.stage_inputs([Member(groups[number], None) for number in index], list(left) or groups)
    return chain.advantages(rewards, index, gsd, columns=columns, extensions={"hadw": hadw})


def test_within_a_step_the_anchor_is_frozen_and_every_group_moves_it_once_after():
    section = {"preset": "hard"}
    hadw, batch, evicted = Hadw(section), [group(2), group(6)], [group(0), group(8), group(8)]
    base = dial_advantage(torch.cat([torch.from_numpy(entry.rewards) for entry in batch]), [0] * 8 + [1] * 8)
    assert torch.equal(chained(hadw, batch, section), base), "nothing was observed yet"
    hadw.end_step(batch + evicted)
    accuracy = (2 + 6 + 0 + 8 + 8) / 40
    assert hadw.bank.value("math") == accuracy
    once, again = (chained(hadw, batch, section) for _ in range(2))
    phi = hadw_factor(base, torch.tensor([0.25] * 8 + [0.75] * 8), accuracy)
    assert torch.equal(once, again) and torch.allclose(once, base * phi)
    assert hadw.record(batch[0]) == {
        "hadw_anchor": accuracy,
        "hadw_factor_right": pytest.approx(1.3 * math.exp(accuracy - 0.25)),
        "hadw_factor_wrong": pytest.approx(1.3 * math.exp(0.25 - accuracy)),
    }


def test_include_current_weighs_with_an_anchor_that_has_seen_the_batch():
    section = {"preset": "hard", "include_current": True}
    hadw, batch = Hadw(section), [group(2)]
    weighed = chained(hadw, batch, section, left=[*batch, group(8)])
    base = dial_advantage(torch.from_numpy(batch[0].rewards), [0] * 8)
    assert torch.allclose(weighed, base * hadw_factor(base, torch.full((8,), 0.25), 10 / 16))
    assert hadw.record(batch[0])["hadw_anchor"] == 10 / 16, "the records have the anchor that was used"
    assert hadw.bank.value("math") is None, "only end_step moves it"


def test_off_is_bit_identical_to_the_base_and_remembers_nothing():
    section = {"preset": "off"}
    hadw, batch = Hadw(section), [group(3), group(5)]
    assert hadw.end_step([group(1)]) == {}
    base = dial_advantage(torch.cat([torch.from_numpy(entry.rewards) for entry in batch]), [0] * 8 + [1] * 8)
    assert torch.equal(chained(hadw, batch, section), base)
    assert hadw.record(batch[0]) == {} and hadw.end_step([]) == {}


@pytest.mark.parametrize("preset", ["hard", "soft", "paper", "fixed", 0.4])
def test_twenty_steps_are_ten_a_restart_and_ten(preset):
    rng = np.random.default_rng(0)
    steps = [[group(int(k), source=f"s{k % 2}") for k in rng.integers(0, 9, 6)] for _ in range(20)]
    whole, first, second = (Hadw({"preset": preset, "n_min": 32}) for _ in range(3))
    for step in steps:
        whole.end_step(step)
    for step in steps[:10]:
        first.end_step(step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in steps[10:]:
        second.end_step(step)
    assert second.state_dict() == whole.state_dict()
    assert second.record(group(3, source="s1")) == whole.record(group(3, source="s1"))


def test_accuracies_that_are_none_are_named_and_graded_ones_are_rescaled():
    graded = Group("graded", "code", 17, np.zeros(2), np.array([-1.0, 0.5]), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"data_source=code, index=17\b.*-1\.0\b.*accuracy_range"):
        Hadw({"preset": "hard"}).end_step([graded])
    hadw = Hadw({"preset": "hard", "accuracy_range": OmegaConf.create([-1, 1])})
    rescaled = hadw.on_group_left(graded, "trained")
    hadw.end_step([rescaled])
    assert hadw.bank.value("code") == 0.375
    (row,) = step_records([LeftGroup(rescaled, "trained")], step=1, attempt=1, alpha=1.0).to_pylist()
    assert (row["correct"], row["total"]) == (0.75, 2), "what is recorded is what was observed"
    silent = Group("silent", "code", 3, np.zeros(1), np.array([np.nan]), np.ones(1, np.int64))
    with pytest.raises(ValueError, match=r"index=3\b.*\bnan\b"):
        hadw.stage_inputs([Member(silent, 0)], [silent])


def test_an_accuracy_outside_the_range_is_rejected_at_the_first_complete_group():
    graded = Group("graded", "code", 17, np.zeros(2), np.array([-1.0, 0.5]), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"data_source=code, index=17\b.*-1\.0\b.*accuracy_range"):
        Hadw({"preset": "hard"}).on_groups_complete([group(3), graded])
    Hadw({"preset": "off"}).on_groups_complete([graded])
    rescaling = Hadw({"preset": "hard", "accuracy_range": OmegaConf.create([-1, 1])})
    rescaling.on_groups_complete([graded])
    outside = replace(graded, accuracies=np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match=r"acc=1\.5 after rescaling"):
        rescaling.on_groups_complete([outside])


@pytest.mark.parametrize("ends", [(0.0, 100.0), (-1.0, 1.0), (0.0, 7.0)])
@pytest.mark.parametrize("parts", [3, 6, 9, 10])
def test_full_and_lowest_marks_that_a_verifier_sums_are_exact_after_rescaling(ends, parts):
    full, lowest = (sum([end / parts] * parts) for end in reversed(ends))
    graded = Group("graded", "code", 17, np.zeros(2), np.array([full, lowest]), np.ones(2, np.int64))
    hadw = Hadw({"preset": "hard", "accuracy_range": OmegaConf.create(list(ends))})
    hadw.on_groups_complete([graded])
    assert hadw.on_group_left(graded, "trained").accuracies.tolist() == [1.0, 0.0]


def test_a_range_per_data_source_leaves_the_accuracies_of_other_sources_as_they_are():
    hadw = Hadw({"preset": "hard", "accuracy_range": OmegaConf.create({"code": [-1, 1]})})
    code = Group("code", "code", 17, np.zeros(2), np.array([-1.0, 0.5]), np.ones(2, np.int64))
    hadw.on_groups_complete([group(1), code])
    left = [hadw.on_group_left(visit, "trained") for visit in (code, group(1), group(0))]
    assert [visit.accuracies.mean() for visit in left] == [0.375, 0.125, 0]
    assert hadw.fingerprint()["accuracy_range"] == {"code": [-1, 1]}
    with pytest.raises(ValueError, match=r"acc=-1\.0, which.*\.accuracy_range=\{other:\[low,high\]\}'"):
        hadw.on_groups_complete([replace(code, data_source="other")])


@pytest.mark.parametrize("accuracies", [(0, 1), (-1, 1)])
@pytest.mark.parametrize("per_source", [False, True])
def test_one_range_warns_of_a_data_source_whose_accuracies_are_in_0_and_1_already(caplog, accuracies, per_source):
    ends = [-1.0, 1.0]
    hadw = Hadw({"preset": "hard", "accuracy_range": {"code": ends, "maths": ends} if per_source else ends})
    for index in range(20):
        for source, values in (("code", (-1, 1)), ("maths", accuracies)):
            visit = Group(f"{source}{index}", source, index, np.zeros(8), np.resize(values, 8), np.ones(8, np.int64))
            hadw.on_group_left(visit, "trained")
    warned = [message for message in caplog.messages if "accuracy_range" in message]
    assert len(warned) == (accuracies == (0, 1) and not per_source)
    assert all("data_source=maths" in message and "{code:[-1,1]}" in message for message in warned)


@pytest.mark.parametrize("source", ["openai/gsm8k", "my code", "a:b", "{x}[1],(y)=z", "a\\b"])
def test_the_ranges_that_messages_advise_survive_a_shell_and_hydras_grammar(caplog, source):
    """bash would make two words of {code:[-1,1]}."""
    values = np.resize([-1.0, 1.0], 8)
    visit = Group("visit", source, 0, values, values, np.ones(8, np.int64))
    with pytest.raises(ValueError, match="accuracy_range") as error:
        Hadw({"preset": "hard"}).on_groups_complete([visit])
    hadw = Hadw({"preset": "hard", "accuracy_range": [-1.0, 1.0], "n_min": 8})
    for other in (visit, replace(visit, data_source="maths", accuracies=(values + 1) / 2)):
        hadw.on_group_left(other, "trained")
    ends = {str(error.value): ["low", "high"], caplog.messages[-1]: [-1, 1]}
    for message, expected in ends.items():
        (quoted,) = re.findall(r"'algorithm\.gsd\.hadw\.accuracy_range=\{[^']*'", message)
        (word,) = shlex.split(quoted)
        override = OverridesParser.create().parse_override(word)
        assert override.value() == {source: expected}


def test_what_yaml_makes_of_off_is_off():
    assert HadwSettings.of({"preset": False}).preset == "off"


def test_metrics_of_a_step():
    section = {"preset": "soft"}
    hadw, batch = Hadw(section), [group(2), group(6), group(8)]
    hadw.end_step([group(4)])
    weighed = chained(hadw, batch, section)
    metrics = hadw.end_step([*batch, group(0)])
    assert metrics["hadw/accuracy"] == 0.5 and metrics["hadw/anchor/before"] == metrics["hadw/anchor/after"] == 0.5
    assert metrics["hadw/steps_unmoved"] == 1 and metrics["hadw/rate"] == 0.05
    cells = {name: metrics[f"hadw/cell/{name}"] for name in ("hard_right", "hard_wrong", "easy_right", "easy_wrong")}
    assert cells == {"hard_right": 2, "hard_wrong": 6, "easy_right": 6, "easy_wrong": 2}
    assert metrics["hadw/frac_degenerate"] == 0.5
    assert metrics["hadw/net_advantage"] == pytest.approx(float(weighed[:16].mean()))
    assert metrics["hadw/phi/min"] == pytest.approx(1.3 * math.exp(-0.25))
    assert hadw.end_step([]) == {}, "they are taken once"


def test_metrics_of_a_step_with_several_updates_are_those_of_all_its_responses():
    """In gsd_separate_async, a step weighs parameter_sync_step batches."""
    section, batches = {"preset": "soft"}, ([group(2), group(3)], [group(1)], [group(6)])
    hadw, at_once = Hadw(section), Hadw(section)
    for one in (hadw, at_once):
        one.end_step([group(4)])
    for batch in batches:
        chained(hadw, batch, section)
    every = [of for batch in batches for of in batch]
    chained(at_once, every, section)
    metrics, expected = hadw.end_step(every), at_once.end_step(every)
    assert metrics == pytest.approx(expected)
    assert (metrics["hadw/cell/hard_right"], metrics["hadw/cell/easy_right"]) == (6, 6)


def test_a_penalty_does_not_hide_a_group_whose_responses_are_all_right():
    shaped = replace(group(8), rewards=group(8).rewards - 0.1 * np.arange(8))
    metrics = Hadw({"preset": "soft"}).end_step([shaped, group(3)])
    assert metrics["hadw/frac_degenerate"] == 0.5


def test_the_papers_anchor_warns_when_it_is_frozen(caplog):
    hadw = Hadw({"preset": "paper"})
    for correct in [4] * 3 + [8] * 10:
        hadw.end_step([group(correct)])
    assert re.search(r"\b0\.500\b.*\b1\.000\b", caplog.text)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"preset": "sfot"}, r"preset=sfot: .*soft, hard, paper, fixed, off.*\. Did you mean soft\?$"),
        ({"preset": 1.2}, r"preset=1\.2"),
        ({"lambda_scale": 0}, r"lambda_scale=0"),
        ({"n_min": 0}, r"n_min=0"),
        ({"accuracy_range": [1, 0]}, r"accuracy_range=\[1, 0\]"),
        ({"include_current": "no"}, r"include_current=no"),
        ({"n_min": True}, r"n_min=true"),
        ({"accuracy_range": [1]}, r"accuracy_range=\[1\]"),
        ({"accuracy_range": 5}, r"accuracy_range=5"),
        ({"accuracy_range": {"code": [1, 0]}}, r"accuracy_range=.*not a range.*DATA_SOURCE"),
        ({"accuracy_range": [-math.inf, 1]}, r"accuracy_range=\[-inf, 1\]"),
        ({"lamda": 1}, r"lamda: .*preset, lambda_scale"),
    ],
)
def test_settings_out_of_range_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        HadwSettings.of(section)
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.hadw\b"):
        extension.build({"hadw": section})


def test_bias_in_records_by_solve_rate():
    left = [
        LeftGroup(group(1, index=1), "trained"),
        LeftGroup(group(7, index=2), "trained"),
        LeftGroup(group(0, index=3), "filtered"),
    ]
    tables = [step_records(left, step=step, attempt=1, alpha=1.0) for step in (1, 2)]
    bins, graded = bias_by_rate(pa.concat_tables(tables), HadwSettings(lambda_scale=1.5))
    assert graded == 0
    assert [(entry.low, entry.groups, entry.visited_once, entry.rate) for entry in bins] == [
        (0.1, 2, 0.0, 0.125),
        (0.7, 2, 0.0, 0.875),
    ]
    first, _ = bias_by_rate(tables[0])
    assert [entry.visited_once for entry in first] == [1.0, 1.0]
    assert all(math.isnan(entry.factor_right) and not math.isnan(entry.bias) for entry in first), "no anchor yet"
    anchor = 8 / 24
    for entry, rate in zip(bins, (0.125, 0.875), strict=True):
        assert entry.bias == pytest.approx(expected_baseline(rate, 8) - rate)
        assert entry.factor_right == pytest.approx(1.5 * math.exp(anchor - rate))
        assert entry.factor_wrong == pytest.approx(1.5 * math.exp(rate - anchor))


def test_prompts_with_partial_credit_have_no_bias_of_lemma_2():
    """Each of their groups is mixed. With one visit of right and wrong responses, too, they are still graded."""
    shaded = [replace(group(4, index=5), accuracies=rate + 0.01 * np.arange(8)) for rate in (0.1, 0.9)]
    visits = [*shaded, group(4, index=5), group(1, index=1)]
    table = step_records([LeftGroup(visit, "trained") for visit in visits], step=1, attempt=1, alpha=1.0)
    (entry,), graded = bias_by_rate(table)
    assert (entry.groups, graded) == (1, 3)
    assert entry.bias == pytest.approx(expected_baseline(0.125, 8) - 0.125)


def test_the_bias_of_a_run_with_a_budget_has_the_anchor_that_training_used():
    hadw, used, tables = Hadw({"preset": "soft"}), [], []
    for step in (1, 2, 3):
        left = [
            replace(group(right, index=right, size=size), rollouts_requested=size) for right, size in ((4, 12), (3, 4))
        ]
        columns = [hadw.record(one) for one in left]
        used.append([figures.get("hadw_factor_right", np.nan) for figures in columns])
        entries = [
            LeftGroup(one, "trained", figures | {"asked": one.rollouts_requested})
            for one, figures in zip(left, columns, strict=True)
        ]
        tables.append(step_records(entries, step=step, attempt=1, alpha=1.0))
        hadw.end_step(left)
    bins, _ = bias_by_rate(pa.concat_tables(tables), HadwSettings(preset="soft"))
    assert [entry.factor_right for entry in bins] == pytest.approx(np.nanmean(used, axis=0))
    assert bins[0].factor_right != pytest.approx(bins[1].factor_right)


def test_the_bias_is_that_of_the_responses_with_an_accuracy():
    """An earlier response counts in the size of a group, and not in its accuracy."""
    visit = group(1, size=4)
    earlier = replace(visit, rewards=np.append(visit.rewards, 1.0), accuracies=np.append(visit.accuracies, np.nan))
    earlier = replace(earlier, tokens=np.append(visit.tokens, 0), earlier=1)
    (entry,), _ = bias_by_rate(step_records([LeftGroup(earlier, "trained")], step=1, attempt=1, alpha=1.0))
    assert entry.bias == pytest.approx(expected_baseline(0.25, 4) - 0.25)


@pytest.mark.parametrize("by_budget", [True, False])
def test_with_groups_of_different_sizes_every_prompt_counts_as_much(by_budget):
    """The sizes are those of a budget, or those that the data sets."""
    equal, budgeted = Hadw({"preset": "hard"}), Hadw({"preset": "hard"})
    equal.end_step([group(2), group(6), group(8)])
    sizes = {2: 4, 6: 16, 8: 4}  # of the same accuracies 1/4, 3/4 and 1
    if not by_budget:
        budgeted.before_rollout(Visits(["u0"], [("maths", 0)], {ROLLOUTS: [4]}, 8))
    metrics = budgeted.end_step(
        [
            replace(group(right * size // 8, size=size), rollouts_requested=size if by_budget else None)
            for right, size in sizes.items()
        ]
    )
    assert budgeted.bank.overall.value == equal.bank.overall.value == pytest.approx(2 / 3)
    assert metrics["hadw/accuracy"] == pytest.approx(2 / 3)
