"""Calibration: AUC and the mask's figures against loops, synthetic judges against closed forms."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from verl_gsd.algorithms.dagrpo.judge_calibration import SPREAD, calibrate, judge_sweep, synthetic_scores
from verl_gsd.algorithms.dagrpo.mask_quality import mask_report
from verl_gsd.judge.calibration import auc, auc_with_interval, histograms, within_group_auc

score = st.one_of(st.integers(0, 10).map(float), st.just(math.nan))
rows = st.lists(st.tuples(score, st.booleans(), st.integers(0, 3)), min_size=1, max_size=24)


def arrays(rows):
    scores, correct, group = zip(*rows, strict=True)
    return np.array(scores), np.array(correct), list(group)


def by_loop(scores, correct, group=None):
    """(wins of the right response, ties half; pairs), over all pairs or those within groups."""
    won = pairs = 0.0
    for i in np.flatnonzero(correct):
        for j in np.flatnonzero(~correct):
            if (group is not None and group[i] != group[j]) or math.isnan(scores[i]) or math.isnan(scores[j]):
                continue
            pairs += 1
            won += (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
    return won, pairs


@settings(max_examples=50)
@given(rows)
def test_auc_equals_a_loop_over_pairs(rows):
    scores, correct, group = arrays(rows)
    won, pairs = by_loop(scores, correct)
    expected = won / pairs if pairs else math.nan
    assert auc(scores, correct) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    overall = auc_with_interval(scores, correct, group)
    assert (overall.value, overall.pairs) == (pytest.approx(expected, abs=1e-12, nan_ok=True), pairs)


@settings(max_examples=50)
@given(rows)
def test_auc_within_groups_equals_a_loop_over_pairs(rows):
    scores, correct, group = arrays(rows)
    won, pairs = by_loop(scores, correct, group)
    measured = within_group_auc(scores, correct, [f"problem {label}" for label in group])
    assert measured.pairs == pairs
    assert measured.value == pytest.approx(won / pairs if pairs else math.nan, abs=1e-12, nan_ok=True)


def test_a_judge_that_only_knows_difficulty_has_auc_one_half_within_groups():
    correct = np.array([True, True, True, False, True, False, False, False])
    scores = np.array([9.0, 9, 9, 9, 2, 2, 2, 2])
    group = ["easy"] * 4 + ["hard"] * 4
    assert auc(scores, correct) == 0.75 and within_group_auc(scores, correct, group).value == 0.5


def test_the_interval_has_its_nominal_coverage():
    """Responses to one problem share a random component. An interval that ignores it would be too narrow."""
    covered = {"overall": 0, "within": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), 6)
        correct = rng.random(360) < 0.5
        scores = rng.normal(size=60)[group] + rng.normal(size=360) + correct
        measured = auc_with_interval(scores, correct, group), within_group_auc(scores, correct, group)
        # Differences of two latent values: variance 2 within a group, 4 between groups.
        for name, area, d in zip(covered, measured, (1 / 2, 1 / math.sqrt(2)), strict=True):
            covered[name] += area.low <= norm.cdf(d) <= area.high
    assert all(34 <= count <= 40 for count in covered.values()), covered


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_is_deterministic(seed):
    rng = np.random.default_rng(seed)
    scores, correct, group = rng.integers(0, 11, 80).astype(float), rng.random(80) < 0.5, np.repeat(np.arange(10), 8)
    once, again = (within_group_auc(scores, correct, group) for _ in range(2))
    assert once == again and once.low < once.value < once.high
    alone = within_group_auc(scores, correct, [0] * 80)
    assert math.isnan(alone.low) and math.isnan(alone.high) and alone.value == auc(scores, correct)


def test_histograms_by_class():
    scores = np.array([0, 10, 9.6, 2.4, math.nan, -3, 12, math.nan])
    correct = np.array([True, True, True, False, False, False, False, True])
    measured = histograms(scores, correct)
    assert measured["right"].counts.tolist() == [1, *[0] * 9, 2] and measured["right"].failed == 1
    assert measured["wrong"].counts.tolist() == [1, 0, 1, *[0] * 7, 1]
    assert (measured["right"].failed_share, measured["wrong"].failed_share) == (0.25, 0.25)
    assert math.isnan(histograms(scores[:3], correct[:3])["wrong"].failed_share)


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([1.0, 2.0], [True], r"\(2,\).*correct\b.*\(1,\)"),
        ([1.0, 2.0], [1, 0], "int64"),
        ([1.0, math.inf], [True, False], r"scores\[1\].*inf"),
    ],
)
def test_invalid_rows_are_rejected(scores, correct, message):
    for measure in (auc, histograms, lambda *rows: within_group_auc(*rows, [0] * 2)):
        with pytest.raises(ValueError, match=message):
            measure(np.array(scores), np.array(correct))


def mask_by_loop(scores, correct, group, delta):
    """(pairs, kept pairs, rows of mixed groups and silenced rows by class, groups, silenced groups, sums of |A|)."""
    rows, silent = {True: 0, False: 0}, {True: 0, False: 0}
    pairs = kept = groups = silent_groups = 0
    push, whole, cosines = 0.0, 0.0, []
    for label in dict.fromkeys(group):
        mine = [row for row, other in enumerate(group) if other == label]
        counts = {row: 0 for row in mine}
        opposite = {row: 0 for row in mine}
        for i in mine:
            for j in mine:
                if correct[i] and not correct[j]:
                    gap = scores[i] - scores[j]
                    keep = math.isnan(gap) or gap >= delta
                    pairs, kept = pairs + 1, kept + keep
                    for row in (i, j):
                        opposite[row] += 1
                        counts[row] += keep
        if not any(opposite.values()):
            continue
        groups += 1
        silent_groups += not any(counts.values())
        sigma = np.std([float(correct[row]) for row in mine], ddof=1) + 1e-6
        for row in mine:
            rows[bool(correct[row])] += 1
            silent[bool(correct[row])] += counts[row] == 0
            push += counts[row] / len(mine) / sigma
            whole += opposite[row] / len(mine) / sigma
        if any(counts.values()):
            a, b = np.array(list(counts.values())), np.array(list(opposite.values()))
            cosines.append(a @ b / math.sqrt((a @ a) * (b @ b)))
    return pairs, kept, rows, silent, groups, silent_groups, push, whole, cosines


@settings(max_examples=50)
@given(rows)
def test_the_masks_figures_equal_a_loop_over_pairs(rows):
    scores, correct, group = arrays(rows)
    deltas = (-math.inf, 0.0, 1.0, 3.0, 5.0)
    measured = mask_report(scores, correct, group, deltas)
    gaps = [
        scores[i] - scores[j] for i in np.flatnonzero(correct) for j in np.flatnonzero(~correct) if group[i] == group[j]
    ]
    known_gaps = [gap for gap in gaps if not math.isnan(gap)]
    assert measured.pairs == len(gaps)
    for share, count, whole in (
        (measured.unknown, len(gaps) - len(known_gaps), len(gaps)),
        (measured.contradicted, sum(gap < 0 for gap in known_gaps), len(known_gaps)),
        (measured.tied, sum(gap == 0 for gap in known_gaps), len(known_gaps)),
    ):
        assert share == pytest.approx(count / whole if whole else math.nan, nan_ok=True)
    for entry, delta in zip(measured.by_delta, deltas, strict=True):
        pairs, kept, rows_, silent, groups, silent_groups, push, whole, cosines = mask_by_loop(
            scores, correct, group, delta
        )
        assert (measured.mixed_groups, entry.delta) == (groups, delta)
        expected = {
            "kept": (kept, pairs),
            "right_silenced": (silent[True], rows_[True]),
            "wrong_silenced": (silent[False], rows_[False]),
            "groups_silenced": (silent_groups, groups),
            "signal": (push, whole),
            "alignment": (sum(cosines), len(cosines)),
        }
        for name, (part, all_) in expected.items():
            assert getattr(entry, name) == pytest.approx(part / all_ if all_ else math.nan, nan_ok=True), name


def chances(quality):
    """The probabilities of scores 0..10 for a right and for a wrong response, by the latent value's distribution."""
    half = norm.ppf(quality) / math.sqrt(2)
    edges = [-math.inf, *(np.arange(10) + 0.5), math.inf]
    spread = SPREAD / math.sqrt(1 + half**2)
    return tuple(np.diff(norm.cdf(edges, 5 + side * spread * half, spread)) for side in (1, -1))


@pytest.mark.parametrize("quality", [0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_a_synthetic_judge_has_the_requested_quality(quality):
    right, wrong = chances(quality)
    exact = sum(right[k] * (wrong[:k].sum() + wrong[k] / 2) for k in range(11))
    assert 0 <= quality - exact < 0.005, "rounding and clipping take no more"
    n = 20_000
    correct = np.arange(n) % 2 == 0
    scores = synthetic_scores(correct, quality, np.random.default_rng(7))
    assert set(scores) <= set(range(11))
    # Five standard errors of an AUC of two samples of n/2 each, at its largest.
    assert auc(scores, correct) == pytest.approx(exact, abs=5 * math.sqrt(1 / (12 * n / 2) * 2))
    for chosen, probability in ((correct, right), (~correct, wrong)):
        share = np.bincount(scores[chosen].astype(int), minlength=11) / chosen.sum()
        assert share == pytest.approx(probability, abs=5 * 0.5 / math.sqrt(n / 2))


def test_a_perfect_judge_keeps_every_pair_at_the_papers_deltas():
    correct = np.array([True, False] * 8)
    scores = synthetic_scores(correct, 1.0, np.random.default_rng(0))
    assert set(scores[correct]) == {8.0} and set(scores[~correct]) == {2.0}


@pytest.mark.parametrize("quality", [0.4, 1.01, math.nan])
def test_a_quality_out_of_range_is_rejected(quality):
    with pytest.raises(ValueError, match=r"AUC"):
        synthetic_scores(np.array([True]), quality, np.random.default_rng(0))


def test_the_remaining_signal_is_the_probability_that_a_pair_is_kept():
    """In groups of equal composition, pairs have equal weight, so the signal is P(right - wrong >= delta)."""
    correct = np.tile([True] * 3 + [False] * 5, 1000)
    sweep = judge_sweep(correct, np.repeat(np.arange(1000), 8), (0.5, 0.8), (1.0, 3.0, 5.0), seeds=range(4))
    assert len(sweep) == 6
    for measured in sweep:
        right, wrong = chances(measured.quality)
        expected = sum(right[i] * wrong[j] for i in range(11) for j in range(11) if i - j >= measured.mask.delta)
        # 4000 groups of eight scores: the pairs of a group are dependent, so that a group counts for no more than one.
        assert measured.mask.signal == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(4000))
        assert measured.mask.kept == pytest.approx(measured.mask.signal)
        assert measured.auc == pytest.approx(measured.quality, abs=0.02)


def test_better_judges_keep_more_signal_and_larger_deltas_less():
    rng = np.random.default_rng(3)
    correct, group = rng.random(800) < 0.4, np.repeat(np.arange(100), 8)
    sweep = judge_sweep(correct, group)
    assert [(entry.quality, entry.mask.delta) for entry in sweep] == [
        (quality, delta) for quality in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) for delta in (1.0, 3.0, 5.0)
    ]
    signal = np.array([entry.mask.signal for entry in sweep]).reshape(6, 3)
    assert (np.diff(signal, axis=0) > 0).all() and (np.diff(signal[:-1], axis=1) < 0).all()
    assert (signal[-1] == 1).all() and sweep == judge_sweep(correct, group)


def test_undefined_measures_are_explained():
    scores, group = np.array([1.0, 11.0, 3.0, 4.0]), [0, 0, 1, 1]
    every = np.array([True] * 4)
    measured = calibrate(scores, every, group)
    assert math.isnan(measured.overall.value) and measured.sweep == () and measured.mask.pairs == 0
    first, second = measured.limitations()
    assert re.search(r"\b4\b.*\bright\b", first) and re.search(r"\b0 to 10: 1\b", second)
    apart = calibrate(scores, np.array([True, True, False, False]), group)
    assert apart.overall.pairs == 4 and "group" in apart.limitations()[0]
    failed = calibrate(np.array([math.nan, 1.0]), np.array([True, False]), [0, 0])
    assert failed.mask.pairs == 1 and failed.mask.unknown == 1 and "failed" in failed.limitations()[0]
    assert all(entry.kept == 1 for entry in failed.mask.by_delta)
    assert calibrate(np.array([8.0, 1.0]), np.array([True, False]), [0, 0]).limitations() == []
