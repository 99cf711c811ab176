"""Prompts drawn by expected disagreement: the mathematics, the order, and a resume that draws what would have come."""

import copy
import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from verl_gsd.algorithms.rollouts.sampler import DisagreementSampler, SamplerExtension
from verl_gsd.errors import ConfigError
from verl_gsd.groups import Group
from verl_gsd.planning.visits import chances, draw, effective_number, expected_disagreement
from verl_gsd.prompts import PromptStore
from verl_gsd.run.dataset import PromptKeys
from verl_gsd.trainer.data_loader import discard_foreign_sampler_state, replace_sampler

shares = st.floats(0, 1)


@given(st.floats(0, 50), shares, st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)))
def test_expected_disagreement_is_the_posteriors_mean(total, share, prior):
    right = share * total
    posterior = scipy.stats.beta(prior[0] + right, prior[1] + total - right)
    slow = 2 * (posterior.mean() - posterior.moment(2))
    assert expected_disagreement(right, total, prior) == pytest.approx(slow, rel=1e-9, abs=1e-12)


@given(st.integers(0, 20), shares, st.integers(2, 9))
def test_it_is_the_expected_variance_of_a_group_of_any_size(total, share, size):
    right = round(share * total)
    groups = scipy.stats.betabinom(size, 1 + right, 1 + total - right)
    variance = sum(groups.pmf(k) * k * (size - k) / size**2 for k in range(size + 1))
    assert expected_disagreement(right, total) == pytest.approx(2 * size / (size - 1) * variance)


def test_what_is_split_is_worth_most_and_what_is_settled_least():
    split, unknown, mastered, long_mastered = expected_disagreement(
        np.array([400, 0, 8, 80]), np.array([800, 0, 8, 80])
    )
    assert 0.5 > split > 0.49 and unknown == pytest.approx(1 / 3)
    assert mastered == pytest.approx(0.1636, abs=5e-5) and 0 < long_mastered < mastered
    with pytest.raises(ValueError, match=r"correct\[1\] is 3\. .*0 .*total"):
        expected_disagreement(np.array([1, 3]), np.array([2, 2]))


verdicts = st.lists(st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1), max_size=12)
priors = st.tuples(st.floats(0.1, 5), st.floats(0.1, 5))


def partial_credit(accuracies):
    return sum(accuracy * (1 - accuracy) for accuracy in accuracies)


@given(verdicts, priors)
def test_graded_verdicts_weigh_by_their_expected_squared_difference(accuracies, prior):
    """E[(x - x')^2] of two draws under the Dirichlet process, by summing over all pairs of atoms of its posterior."""
    atoms = [(1.0, prior[0]), (0.0, prior[1]), *((accuracy, 1.0) for accuracy in accuracies)]
    mass = math.fsum(weight for _, weight in atoms)
    # The second draw repeats the first with probability 1 / (mass + 1), and is a new draw from the base otherwise.
    pairs = math.fsum(v * w * (x - y) ** 2 for x, v in atoms for y, w in atoms)
    slow = pairs / mass**2 * mass / (mass + 1)
    found = expected_disagreement(sum(accuracies), len(accuracies), prior, partial=partial_credit(accuracies))
    assert found == pytest.approx(slow, rel=1e-9, abs=1e-12)


@given(st.integers(0, 30), st.integers(0, 30), priors)
def test_verdicts_of_0_and_1_weigh_as_they_did_to_the_bit(right, wrong, prior):
    a, b = prior[0] + right, prior[1] + wrong
    assert expected_disagreement(right, right + wrong, prior, partial=0.0) == 2 * a * b / ((a + b) * (a + b + 1))


def test_partial_credit_does_not_look_like_disagreement():
    """Eight visits of 8: always 0.5, always 0.3, always right, 1 in 8 right, half right."""
    correct, total = np.array([32, 19.2, 64, 8, 32]), np.full(5, 64)
    partial = np.array([16, 64 * 0.21, 0, 0, 0])
    half_credit, some_credit, mastered, hard, split = expected_disagreement(correct, total, (0.5, 0.5), partial=partial)
    assert half_credit < some_credit < mastered < hard < split
    assert split == pytest.approx(0.4924, abs=1e-3)
    as_counts = expected_disagreement(correct, total, (0.5, 0.5))
    assert as_counts[0] == as_counts[4], "the sum alone cannot tell them apart"


@pytest.mark.parametrize("partial", [-0.1, 2.1, math.nan])
def test_partial_credit_that_no_verdicts_have_is_an_error(partial):
    with pytest.raises(ValueError, match=r"partial\[1\] is"):
        expected_disagreement(np.array([0, 4]), np.array([1, 8]), partial=np.array([0, partial]))


def inclusion(chance, count):
    """Each place's probability to be among ``count`` draws one after another without replacement, by enumeration."""
    found = np.zeros(len(chance))
    for order in itertools.permutations(range(len(chance)), count):
        probability, left = 1.0, 1.0
        for place in order:
            probability *= chance[place] / left
            left -= chance[place]
        found[list(order)] += probability
    return found


def test_draws_are_one_after_another_without_replacement():
    chance = chances(np.array([0.5, 0.3, 0.05, 0.02, 1 / 3]), explore=0.1)
    rng, rounds = np.random.default_rng(0), 40_000
    drawn = np.array([draw(chance, 3, rng) for _ in range(rounds)])
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    first, among = np.bincount(drawn[:, 0], minlength=5), np.bincount(drawn.ravel(), minlength=5)
    for seen, expected in ((first, chance), (among, inclusion(chance, 3))):
        assert np.abs(seen / rounds - expected).max() < 5 * math.sqrt(0.25 / rounds)
    assert sorted(draw(chance, 5, rng)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"count=6 is .*5"):
        draw(chance, 6, rng)


@given(st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=6), st.floats(0.001, 1), st.integers(1, 6))
def test_no_prompt_starves(weights, explore, count):
    chance = chances(np.array(weights), explore)
    assert chance.sum() == pytest.approx(1)
    bound = 1 - (1 - explore / len(weights)) ** min(count, len(weights))
    assert (inclusion(chance, min(count, len(weights))) >= bound - 1e-9).all()


def test_the_effective_number_is_that_of_equal_chances():
    assert effective_number(np.full(7, 1 / 7)) == pytest.approx(7)
    assert effective_number(np.array([1 - 3e-9, 1e-9, 1e-9, 1e-9])) == pytest.approx(1)


# Against the memory of prompts

observations = st.lists(
    st.tuples(st.sampled_from(["a", "b", "elsewhere"]), st.integers(-2, 9), st.integers(0, 4)), max_size=60
)


@given(observations, st.integers(1, 12), st.sampled_from([None, 3.0]))
def test_rows_are_weighed_by_what_the_memory_says_of_their_keys(visits, capacity, half_life):
    """Whatever is forgotten on the way, and where rows of the data set are of one prompt."""
    store = PromptStore(capacity, half_life)
    rows = [("a", 3), ("b", 3), ("a", -1), ("b", 0), ("a", 3), ("c", 0), ("a", 9)]
    keys = PromptKeys(("a", "b", "c"), np.array([0, 1, 0, 1, 0, 2, 0]), np.array([index for _, index in rows]))
    sampler = DisagreementSampler(keys, store, count=len(rows), explore=0.1, seed=0, step=lambda: step)
    for step, (source, index, correct) in enumerate(visits):
        store.observe((source, index), correct, 4, step)
        if step % 3 == 0:
            seen, total = store.recent(rows, step)
            chance = chances(expected_disagreement(seen, total), explore=0.1)
            drawn = draw(chance, len(rows), np.random.default_rng([0, step // 3]))
            assert list(sampler) == drawn.tolist()
            assert sampler.metrics()["sampler/effective_prompts"] == effective_number(chance)
            assert sampler.metrics()["sampler/frac_new"] == np.mean(total == 0)


def test_a_draw_prefers_prompts_whose_responses_differ_over_those_with_equal_partial_credit():
    store = PromptStore()
    keys = PromptKeys(("a",), np.zeros(2, np.int64), np.arange(2))
    for step in range(8):
        store.observe(("a", 0), 4.0, 8, step, partial=2.0)  # 0.5 eight times
        store.observe(("a", 1), 4.0, 8, step)  # four right, four wrong
    sampler = DisagreementSampler(keys, store, count=1, explore=0.1, seed=0, step=lambda: 8)
    drawn = [row for _ in range(50) for row in sampler]
    assert drawn.count(1) > 0.85 * len(drawn)


def left_with(accuracies, tokens=None):
    size = len(accuracies)
    tokens = np.ones(size, np.int64) if tokens is None else np.array(tokens)
    return Group("uid", "math", 7, np.zeros(size), np.array(accuracies), tokens)


@pytest.mark.parametrize(
    ("accuracies", "shown"), [([1.0, -1.0], r"-1\.0"), ([1.0, 1.3], r"1\.3"), ([np.nan, 1.0], "nan")]
)
def test_groups_without_accuracies_in_0_to_1_are_rejected_before_the_update(accuracies, shown):
    """They would never reach the memory, and the sampler would be uniform without a word."""
    sampler = SamplerExtension({}, SimpleNamespace(prompts=PromptStore()))
    assert sampler.stage_inputs([], [left_with([0.5, 1.0]), left_with([])]) == {}
    with pytest.raises(ValueError, match=rf"algorithm\.gsd\.sampler .*data_source=math, index=7 has acc={shown}\."):
        sampler.stage_inputs([], [left_with([1.0, 0.0]), left_with(accuracies)])


def test_responses_of_earlier_visits_need_no_accuracy():
    sampler = SamplerExtension({}, SimpleNamespace(prompts=PromptStore()))
    assert sampler.stage_inputs([], [left_with([1.0, np.nan], tokens=[3, 0])]) == {}


def test_a_source_that_a_checkpoint_left_without_accuracies_is_rejected_before_the_update():
    """Its prompts would stay unknown for the whole run, although the reward function is right now."""
    store = PromptStore()
    store.leave_out("another")
    sampler = SamplerExtension({}, SimpleNamespace(prompts=store))
    assert sampler.stage_inputs([], [left_with([1.0, 0.0])]) == {}
    store.leave_out("math")
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.sampler .*data_source=math.*algorithm\.gsd\.state=fresh"):
        sampler.stage_inputs([], [left_with([1.0, 0.0])])


class Run:
    """A trainer's loop without the trainer: draws a batch at each step's start, and observes it at the step's end."""

    def __init__(self, n_prompts=50, count=8, batch_size=None, explore=0.1, half_life=5.0, capacity=1000, seed=1):
        self.step = 0
        self.rates = np.linspace(0, 1, n_prompts)
        self.store = PromptStore(capacity, half_life)
        self.batch_size = batch_size or count
        self.sampler = DisagreementSampler(
            PromptKeys(("s",), np.zeros(n_prompts, int), np.arange(n_prompts)),
            self.store,
            count=count,
            explore=explore,
            seed=seed,
            step=lambda: self.step,
        )
        stock = StatefulDataLoader(list(range(n_prompts)), batch_size=self.batch_size, drop_last=True, collate_fn=list)
        self.loader = replace_sampler(stock, self.sampler)
        self.iterator = None

    def fetch(self):
        """As verl does (``_fetch_one_gen_batch``)."""
        try:
            if self.iterator is None:
                self.iterator = iter(self.loader)
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.loader)
            return next(self.iterator)

    def steps(self, count, fetched=8):
        drawn = []
        for _ in range(count):
            self.step += 1
            prompts = [prompt for _ in range(fetched // self.batch_size) for prompt in self.fetch()]
            drawn.append(prompts)
            outcomes = np.random.default_rng([self.step, 7])
            for prompt in prompts:
                self.store.observe(("s", prompt), outcomes.binomial(8, self.rates[prompt]), 8, self.step)
        return drawn

    def saved(self):
        file = io.BytesIO()
        torch.save(self.loader.state_dict(), file)
        return self.step, copy.deepcopy(self.store.state_dict()), file.getvalue()

    def restore(self, saved):
        self.step = saved[0]
        self.store.load_state_dict(saved[1])
        self.loader.load_state_dict(torch.load(io.BytesIO(saved[2]), weights_only=False))
        discard_foreign_sampler_state(self.loader)
        return self


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"batch_size": 1},  # as verl fetches where groups are refilled or generated ahead
        {"batch_size": 1, "count": 12},  # a checkpoint in the midst of a draw
        {"capacity": 20},  # a memory that forgets
        {"half_life": None},
        {"n_prompts": 8},  # a pass is one draw
    ],
)
def test_a_resume_draws_what_an_uninterrupted_run_draws(words):
    whole, stopped = Run(**words), Run(**words)
    expected = whole.steps(14)
    done = []
    for length in (1, 5, 2, 6):  # passes are of six draws, but for the last case
        done += stopped.steps(length)
        stopped = Run(**words).restore(stopped.saved())
    assert done == expected


def test_another_seed_draws_others_and_so_does_another_outcome():
    first, other_seed, other_outcomes = Run(), Run(seed=2), Run()
    other_outcomes.rates = np.full(50, 0.5)
    assert first.steps(1) == other_outcomes.steps(1) != other_seed.steps(1), "nothing is known at the first draw"
    assert first.steps(5) != other_outcomes.steps(5), "later ones know what came out"


def test_a_batch_has_no_prompt_twice_and_a_pass_its_length():
    run = Run(n_prompts=50, count=8)
    assert len(run.loader) == 6 and len(run.sampler) == len(list(run.sampler)) == 48
    assert all(len(set(batch)) == 8 for batch in Run().steps(30))


def test_prompts_that_disagree_are_revisited_and_none_is_forgotten():
    run = Run(n_prompts=60, count=6, batch_size=6, explore=0.1, half_life=None)
    visits = np.bincount(np.concatenate(run.steps(400, fetched=6)), minlength=60)
    settled, split = visits[(run.rates < 0.05) | (run.rates > 0.95)], visits[abs(run.rates - 0.5) < 0.2]
    assert split.mean() > 3 * settled.mean()
    assert settled.min() > 0
    figures = run.sampler.metrics()
    assert figures["sampler/frac_new"] == 0
    assert figures["sampler/disagreement/drawn"] > figures["sampler/disagreement/everywhere"]
    assert 20 < figures["sampler/effective_prompts"] < 60


def test_a_first_draw_knows_nothing_and_says_so():
    run = Run()
    run.steps(1)
    assert run.sampler.metrics() == {
        "sampler/frac_new": 1.0,
        "sampler/disagreement/drawn": pytest.approx(1 / 3),
        "sampler/disagreement/everywhere": pytest.approx(1 / 3),
        "sampler/effective_prompts": pytest.approx(50),
    }
    assert run.sampler.seconds > 0


def stock_loader(sampler=None, **words):
    data = list(range(50))
    generator = torch.Generator()
    return StatefulDataLoader(
        data, batch_size=8, drop_last=True, sampler=sampler or RandomSampler(data, generator=generator), **words
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_may_change_its_sampler_on_resume(workers, caplog):
    stock = stock_loader(num_workers=workers)
    batches = iter(stock)
    next(batches)
    ours = Run()
    ours.loader.load_state_dict(stock.state_dict())
    discard_foreign_sampler_state(ours.loader)
    assert "checkpoint" in caplog.text
    assert ours.steps(2) == Run().steps(2)

    back = stock_loader()
    back.load_state_dict(ours.loader.state_dict())
    discard_foreign_sampler_state(back)
    assert len(next(iter(back))) == 8


@pytest.mark.parametrize("sampler", [None, torch.utils.data.SequentialSampler(range(50))])
def test_verls_own_samplers_keep_their_place(sampler):
    first = stock_loader(sampler)
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    rest = [batch.tolist() for batch in batches]
    again = stock_loader(sampler)
    again.load_state_dict(state)
    discard_foreign_sampler_state(again)
    assert [batch.tolist() for batch in again] == rest


def test_a_place_in_other_data_is_none():
    ours, smaller = Run(), Run(n_prompts=20)
    ours.steps(3)
    smaller.restore(ours.saved())
    assert smaller.steps(1) and max(smaller.sampler.state_dict()["waiting"], default=0) < 20
    assert smaller.sampler.state_dict()["draws"] == 1


def test_fewer_prompts_than_a_draw_are_refused():
    with pytest.raises(ConfigError, match=r"data\.train_batch_size=8: .*7 prompts"):
        Run(n_prompts=7)
