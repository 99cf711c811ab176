"""False alarms and power of the report's findings: simulated runs in which nothing is wrong, and runs with a fault.

    python benchmarks/alarms.py --runs 300

In a healthy run, the policy does not change, or it learns steadily. Only chance moves the other figures: which prompts
a step visits, which responses are right, how long they are, and how a gradient's norm scatters. A finding in such a run
is a false alarm. The only exceptions are findings that state a true fact of the run, such as a share of silent groups
above one half.

Each fault changes one thing at a size that matters to a user. Power is the share of such runs with the finding.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from scipy.special import expit, logit
from scipy.stats import beta

from verl_gsd.extension import declarations, load
from verl_gsd.planning import allocate_from_counts, posterior_silent_rate
from verl_gsd.records import schema, with_valid_accuracies
from verl_gsd.report.findings.collect import FINDERS
from verl_gsd.report.findings.finding import Finder
from verl_gsd.report.reading import Columns, RunData
from verl_gsd.report.steps import step_table

RESULTS = Path(__file__).parent / "results" / "alarms.json"
HALF_LIFE, PRIOR = 100.0, (0.5, 0.5)
MAX_LENGTH = 2048


@dataclass(frozen=True)
class SecondSource:
    """The second of two data sources. Its prompts are harder, and their responses longer.

    Attributes:
        shares: its share of the prompts at the first and at the last step.
        law: the Beta law of its solve rates.
        length: mean tokens of a response, which is 400 in the first source.
        unverified: share of the responses that the verifier cannot verify, which is 0.01 in the first source.
    """

    shares: tuple[float, float]
    law: tuple[float, float] = (0.8, 2.4)
    length: float = 1600.0
    unverified: float = 0.12


@dataclass(frozen=True)
class Scenario:
    """A kind of run in which nothing is wrong.

    Attributes:
        law: (a, b), the Beta law of the prompts' solve rates.
        prompts: number of training prompts. A step visits ``batch`` of them, in a new order in each pass.
        held_out: number of held-out prompts, each with ``samples`` responses at each of ``validations`` validations.
        earlier: share of a group's responses that are of an earlier visit, from a prompt's second visit on.
        budget: whether group sizes follow from earlier visits.
        demonstrations: whether a group in which all responses failed gets a demonstration.
        filtered: whether dynamic sampling evicts groups whose responses are all right or all wrong.
        resumed: whether the run resumes after half of its steps, without the memory of earlier visits.
        signed: whether the verifier returns 1 and -1 as plain numbers, which verl takes for accuracies. The records are
            those of an older version, which left out the groups with a -1 and kept the others.
        sources: number of data sources among which the prompts are divided equally.
        second: the second of two data sources, if they differ.
        unrated: whether the verifier returns no ``acc``, so that verl validates the mean reward.
        learning: what the logit of every prompt's solve rate gains over the run.
    """

    law: tuple[float, float] = (1.0, 1.0)
    prompts: int = 1000
    batch: int = 32
    size: int = 8
    steps: int = 120
    held_out: int = 200
    samples: int = 1
    validations: int = 20
    earlier: float = 0.0
    budget: bool = False
    demonstrations: bool = False
    filtered: bool = False
    resumed: bool = False
    signed: bool = False
    sources: int = 1
    second: SecondSource | None = None
    unrated: bool = False
    learning: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)


GVPO = {"algorithm.gsd.gvpo.history_fraction": 0.5, "actor_rollout_ref.actor.policy_loss.loss_mode": "gvpo"}
#: The number of a scenario is part of the seed of its runs: add new ones at the end.
HEALTHY = {
    "uniform law": Scenario(),
    "law (.3, .3)": Scenario(law=(0.3, 0.3), held_out=500),
    "law (.1, .6), few visits": Scenario(law=(0.1, 0.6), prompts=4000, held_out=1000),
    "law (.6, .1), many passes": Scenario(law=(0.6, 0.1), prompts=300, held_out=100),
    "30 held-out prompts": Scenario(law=(0.5, 1.2), held_out=30),
    "30 held-out prompts, 32 samples": Scenario(law=(0.3, 1.5), held_out=30, samples=32),
    "groups of 4, batches of 8": Scenario(size=4, batch=8, steps=300, prompts=800, held_out=100),
    "groups of 32": Scenario(size=32, batch=16, steps=60, held_out=198, validations=10),
    "12 steps": Scenario(steps=12, validations=4, held_out=100),
    "1,000 steps": Scenario(steps=1000, batch=16, held_out=100, validations=50),
    "earlier responses": Scenario(prompts=300, earlier=0.5, config=GVPO),
    "adaptive budget": Scenario(law=(0.3, 0.3), prompts=400, budget=True),
    "demonstrations": Scenario(law=(0.4, 1.0), demonstrations=True),
    "dynamic sampling": Scenario(filtered=True, config={"algorithm.filter_groups.enable": True}),
    "resumed with a fresh memory": Scenario(law=(0.5, 0.5), prompts=300, resumed=True),
    "verdicts of -1 and 1": Scenario(law=(0.6, 1.4), held_out=100, signed=True),
    "rewards without an accuracy": Scenario(law=(0.6, 1.4), held_out=100, unrated=True),
    "500 steps per pass": Scenario(law=(0.2, 0.8), prompts=4000, batch=8, steps=1000, held_out=500),
    "200 steps per pass, adaptive budget": Scenario(
        law=(0.2, 0.8), prompts=1600, batch=8, steps=400, held_out=500, budget=True
    ),
    "8 data sources": Scenario(law=(0.3, 0.3), held_out=500, steps=60, sources=8),
    "8 data sources without an accuracy": Scenario(law=(0.6, 1.4), held_out=100, steps=60, sources=8, unrated=True),
    "a policy that learns": Scenario(prompts=1500, learning=2.0, steps=160),
    "a policy that learns, adaptive budget": Scenario(prompts=1500, learning=2.0, steps=160, budget=True),
    "a harder data source is visited more and more": Scenario(
        law=(4.0, 1.5), sources=2, second=SecondSource((0.1, 0.9)), held_out=500
    ),
    "a harder data source is visited less and less": Scenario(
        law=(4.0, 1.5), sources=2, second=SecondSource((0.9, 0.1)), held_out=500
    ),
    "law (1, 9)": Scenario(law=(1.0, 9.0)),
    "law (2, 18), many passes": Scenario(law=(2.0, 18.0), prompts=500, steps=160),
    "law (1, 30), adaptive budget": Scenario(law=(1.0, 30.0), budget=True),
    "law (1, 9), dynamic sampling": Scenario(
        law=(1.0, 9.0), filtered=True, config={"algorithm.filter_groups.enable": True}
    ),
    "law (.3, 10), few groups of 4": Scenario(law=(0.3, 10.0), prompts=500, size=4, batch=64, steps=80),
    "law (1, 30), 300 prompts beside easier ones": Scenario(
        law=(4.0, 1.5), prompts=600, sources=2, second=SecondSource((0.5, 0.5), (1.0, 30.0)), steps=160, held_out=500
    ),
}


@dataclass
class Draw:
    """What one run consists of. A fault changes it before the figures are computed.

    Attributes:
        solve_rates: (steps, batch) of each visit.
        held_out_rates: (validations, held_out).
        together: (steps, batch) bool, groups whose responses all equal the first one.
        length: (steps, batch), mean tokens of a response.
        unverified: (steps, batch), the probability that a response cannot be verified; None if the records do not
            have it.
        fates: (steps, batch), numbers of ``_FATES``.
        lost: (steps, batch), responses whose reward failed.
        metrics: name -> (steps,).
        extensions: record column -> (steps, batch).
    """

    rng: np.random.Generator
    scenario: Scenario
    prompt: np.ndarray
    solve_rates: np.ndarray
    held_out_rates: np.ndarray
    together: np.ndarray
    length: np.ndarray
    unverified: np.ndarray | None
    fates: np.ndarray
    lost: np.ndarray
    alone: np.ndarray
    metrics: Columns
    extensions: dict[str, np.ndarray]
    config: dict[str, Any]

    @property
    def late(self) -> slice:
        """The second half of the steps."""
        return slice(self.scenario.steps // 2, None)


_FATES = np.array(["trained", "surplus", "stale", "failed"], dtype=object)


def draw(scenario: Scenario, rng: np.random.Generator) -> Draw:
    steps, batch = scenario.steps, scenario.batch
    rates = rng.beta(*scenario.law, scenario.prompts)
    length, unverified = np.full((steps, batch), 400.0), None
    if scenario.second is None:
        prompt = _in_passes(scenario.prompts, steps * batch, rng).reshape(steps, batch)
    else:
        rates[1::2] = rng.beta(*scenario.second.law, scenario.prompts // 2)
        is_second = rng.random((steps, batch)) < np.linspace(*scenario.second.shares, steps)[:, None]
        half, shape = scenario.prompts // 2, (steps, batch)
        of_either: list[np.ndarray] = [_in_passes(half, steps * batch, rng).reshape(shape) for _ in range(2)]
        prompt = 2 * np.where(is_second, of_either[1], of_either[0]) + is_second
        length = np.where(is_second, scenario.second.length, length)
        unverified = np.where(is_second, scenario.second.unverified, 0.01)
    held_out = rng.beta(*scenario.law, scenario.held_out)
    done, validated = (np.linspace(0, 1, count)[:, None] for count in (steps, scenario.validations))
    responses = batch * scenario.size
    metrics = {
        "actor/grad_norm": 0.2 * np.exp(0.6 * rng.normal(size=steps)),
        "actor/pg_loss": 0.01 * rng.standard_t(3, steps),
        "actor/entropy": 0.4 * np.exp(0.1 * rng.normal(size=steps)),
        "verifier/unverified": rng.binomial(responses, 0.02, steps) / responses,
        "reward/share_of_step": rng.beta(2, 8, steps),
        "response_length/max": np.full(steps, float(MAX_LENGTH)),
        "response_length/clip_ratio": rng.binomial(responses, 0.1, steps) / responses,
        "gvpo/pull_over_push": 0.7 * np.exp(0.4 * rng.normal(size=steps)),
        "judge/share_of_step": rng.beta(2, 8, steps),
        "dagrpo/pairs/tied": rng.beta(4, 16, steps),
        "dagrpo/demonstrations/wanted": rng.poisson(6, steps).astype(float),
        "dagrpo/demonstrations/found": rng.poisson(4, steps).astype(float),
    }
    pairs = rng.integers(7, 17, (steps, batch)).astype(float)
    extensions = {
        "dagrpo_pairs": pairs,
        "dagrpo_pairs_kept": rng.binomial(pairs.astype(int), 0.6).astype(float),
        "dagrpo_pairs_contradicted": rng.binomial(pairs.astype(int), 0.15).astype(float),
        "judge_failed": rng.binomial(scenario.size, 0.01, (steps, batch)).astype(float),
        "judge_score": rng.normal(5, 2, (steps, batch)).clip(0, 10),
    }
    return Draw(
        rng,
        scenario,
        prompt,
        expit(logit(rates[prompt]) + scenario.learning * done),
        expit(logit(held_out) + scenario.learning * validated),
        np.zeros((steps, batch), bool),
        length,
        unverified,
        np.zeros((steps, batch), int),
        np.zeros((steps, batch), int),
        np.zeros((steps, batch), bool),
        metrics,
        extensions,
        {"data.max_response_length": MAX_LENGTH, "data.shuffle": True}
        | ({"algorithm.gsd.budget.half_life": HALF_LIFE} if scenario.budget else {})
        | scenario.config,
    )


def _in_passes(prompts: int, visits: int, rng: np.random.Generator) -> np.ndarray:
    """(visits,) prompts: all of them in a new order in each pass."""
    passes = -(-visits // prompts)
    return np.concatenate([rng.permutation(prompts) for _ in range(passes)])[:visits]


def run_of(of: Draw) -> RunData:
    """The records and metrics of a run, as its files would have them."""
    rng, scenario = of.rng, of.scenario
    steps, batch = of.prompt.shape
    correct, total, last = np.zeros(scenario.prompts), np.zeros(scenario.prompts), np.zeros(scenario.prompts)
    before = np.full((scenario.prompts, scenario.size), np.nan)  # rewards of the last visit
    columns: dict[str, list[np.ndarray]] = {}
    expected = np.full(steps, np.nan)
    known_share = np.full(steps, np.nan)
    anchor = np.full(steps, np.nan)
    level = None
    for step in range(steps):
        at = of.prompt[step]
        if scenario.resumed and step == steps // 2:
            correct[:], total[:] = 0, 0
        weight = 2 ** (-(step - last[at]) / HALF_LIFE)
        seen_correct, seen = weight * correct[at], weight * total[at]
        sizes = np.full(batch, scenario.size)
        if scenario.budget:
            sizes = allocate_from_counts(seen_correct, seen, batch * scenario.size, prior=PRIOR)
            expected[step] = 1 - np.mean(posterior_silent_rate(seen_correct, seen, sizes, PRIOR))
            known_share[step] = (seen > 0).mean()
        sizes = np.where(of.alone[step], 1, sizes)
        sizes = np.where(of.fates[step] == 3, 0, sizes)
        earlier = np.where(seen > 0, int(scenario.earlier * scenario.size), 0)
        own = sizes - earlier
        right = rng.binomial(own, of.solve_rates[step]).astype(float)
        first = (rng.random(batch) < of.solve_rates[step]).astype(float)
        right = np.where(of.together[step], first * own, right)
        replayed = np.nansum(np.where(np.arange(scenario.size) < earlier[:, None], before[at], 0), axis=1)
        mean = np.divide(right + replayed, sizes, out=np.full(batch, np.nan), where=sizes > 0)
        lengths = rng.lognormal(np.log(of.length[step])[:, None] - 0.2, 0.63, (batch, max(own.max(), 1)))
        tokens = np.where(np.arange(lengths.shape[1]) < own[:, None], lengths, 0).sum(axis=1)
        predicted = np.full(batch, np.nan)
        is_rated = ((right == own) | (not scenario.signed)) & (not scenario.unrated)
        predictable = (seen > 0) & (earlier == 0) & (sizes > 0) & is_rated
        predicted[predictable] = posterior_silent_rate(
            seen_correct[predictable], seen[predictable], sizes[predictable], PRIOR
        )
        accuracy = right.sum() / max(own.sum(), 1)
        level = accuracy if level is None else 0.9 * level + 0.1 * accuracy
        anchor[step] = level
        row = {
            "step": np.full(batch, step + 1),
            "fate": of.fates[step],
            "size": sizes,
            "correct": np.where(is_rated, right, 0),
            "total": np.where(is_rated, own, 0),
            "mean": mean,
            "tokens": tokens,
            "earlier": earlier,
            "failed_rewards": of.lost[step],
            "silent_predicted": predicted,
            "hadw_anchor": np.full(batch, anchor[step]),
        }
        if of.unverified is not None:
            row["unverified"] = rng.binomial(own, of.unverified[step])
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
        correct[at], total[at] = seen_correct + np.where(is_rated, right, 0), seen + np.where(is_rated, own, 0)
        last[at] = step
        if scenario.earlier:
            for prompt, count, hits in zip(at, own.tolist(), right.astype(int).tolist(), strict=True):
                before[prompt, :count] = rng.permutation(np.arange(count) < hits)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    with np.errstate(invalid="ignore"):
        observed = joined["correct"].reshape(steps, batch).sum(axis=1) / joined["total"].reshape(steps, batch).sum(
            axis=1
        )
    metrics = {"step": np.arange(1, steps + 1), "hadw/accuracy": observed} | of.metrics
    if scenario.budget:
        metrics |= {"budget/mixed/expected": expected, "budget/share/known": known_share}
    if of.unverified is not None:
        shape = steps, batch
        metrics["verifier/unverified"] = joined["unverified"].reshape(shape).sum(axis=1) / joined["total"].reshape(
            shape
        ).sum(axis=1)
    metrics |= _validations(of)
    return RunData("run", with_valid_accuracies(_records(joined, of)), metrics, of.config, 1, ())


def _validations(of: Draw) -> Columns:
    scenario = of.scenario
    right = of.rng.binomial(scenario.samples, of.held_out_rates).sum(axis=1)
    at = np.linspace(0, scenario.steps - 1, scenario.validations).astype(int)
    accuracy, prompts = np.full(scenario.steps, np.nan), np.full(scenario.steps, np.nan)
    accuracy[at] = right / (scenario.held_out * scenario.samples)
    prompts[at] = scenario.held_out
    outside = {}
    if scenario.signed:
        outside["val/outside/maths"] = (1 - accuracy) * prompts * scenario.samples
        accuracy = 2 * accuracy - 1
    figure = "reward" if scenario.unrated else "acc"
    return {f"val-core/maths/{figure}/mean@{scenario.samples}": accuracy, "val/prompts/maths": prompts} | outside


def _records(joined: dict[str, np.ndarray], of: Draw) -> pa.Table:
    mean, size = joined["mean"], joined["size"]
    empty = size == 0
    unanimous = (mean == 0) | (mean == 1)
    std = np.sqrt(mean * (1 - mean))
    kind = np.where(unanimous, np.where(mean == 1, "all_right", "all_wrong"), "mixed").astype(object)
    kind[empty] = None
    if of.scenario.signed:
        mean, std = 2 * mean - 1, 2 * std
    shown = (mean == 0) & of.scenario.demonstrations
    fate = np.where(unanimous & of.scenario.filtered, "filtered", _FATES[joined["fate"]])
    rows = len(mean)
    values: dict[str, Any] = joined | {
        "attempt": np.ones(rows),
        "fate": fate,
        "data_source": np.array([f"maths{n}" if n else "maths" for n in of.prompt.ravel() % of.scenario.sources]),
        "index": of.prompt.ravel(),
        "kind": kind,
        "silent": pa.array(unanimous, mask=empty),
        "std": pa.array(std, mask=empty),
        "mean": pa.array(mean, mask=empty),
        "gain": pa.array(np.where(unanimous, 0, std), mask=empty),
        "tokens": joined["tokens"].astype(np.int64),
        "silent_predicted": pa.array(joined["silent_predicted"], mask=np.isnan(joined["silent_predicted"])),
        "demonstrations": shown.astype(int),
    }
    values |= {name: pa.array(figures.ravel(), mask=empty) for name, figures in of.extensions.items()}
    arrays = []
    for column in schema():
        array = values.get(column.name, pa.nulls(rows))
        arrays.append(pa.array(array).cast(column.type))
    return pa.table(arrays, schema=schema())


# Faults


def fall(by: float) -> Callable[[Draw], None]:
    def fault(of: Draw) -> None:
        of.held_out_rates[2 * len(of.held_out_rates) // 3 :] *= 1 - by

    return fault


def silence(of: Draw) -> None:
    of.together[of.rng.random(of.together.shape) < 0.7] = True


def dependence(of: Draw) -> None:
    of.together[of.late] |= of.rng.random(of.together[of.late].shape) < 0.4


def leave(fate: int, share: float) -> Callable[[Draw], None]:
    def fault(of: Draw) -> None:
        of.fates[of.rng.random(of.fates.shape) < share] = fate

    return fault


def singles(of: Draw) -> None:
    of.alone[of.rng.random(of.alone.shape) < 0.1] = True


def lost_rewards(of: Draw) -> None:
    of.lost[of.rng.random(of.lost.shape) < 0.01] = 1


def scaled(name: str, factor: float) -> Callable[[Draw], None]:
    def fault(of: Draw) -> None:
        of.metrics[name][of.late] *= factor

    return fault


def raised(name: str, value: float) -> Callable[[Draw], None]:
    def fault(of: Draw) -> None:
        of.metrics[name] = of.metrics[name] + np.linspace(0, value, of.scenario.steps)

    return fault


def shift(of: Draw) -> None:
    of.solve_rates[of.late] *= 0.4


def shorten(of: Draw) -> None:
    of.length[of.late] /= 3


def spike(of: Draw) -> None:
    of.metrics["actor/grad_norm"][2 * of.scenario.steps // 3] = 1e10


def shift_scores(of: Draw) -> None:
    of.extensions["judge_score"][of.late] += 3


def more_contradictions(of: Draw) -> None:
    of.extensions["dagrpo_pairs_contradicted"] = of.extensions["dagrpo_pairs"] // 2


def frozen(of: Draw) -> None:
    of.extensions["hadw_anchor"] = np.full(of.prompt.shape, 0.3)


def mastered(of: Draw) -> None:
    of.solve_rates[of.late] = 0.97


def few_kept(of: Draw) -> None:
    of.extensions["dagrpo_pairs_kept"] = 0.0 * of.extensions["dagrpo_pairs"]


def failed_judgements(of: Draw) -> None:
    of.extensions["judge_failed"] = of.rng.binomial(of.scenario.size, 0.1, of.prompt.shape).astype(float)


# Faults that begin at the first step, and are complete after about ten


def still_healthy(of: Draw) -> np.ndarray:
    """(steps,) the part of a figure that an early fault has not changed yet. Its time constant is 3 steps."""
    return np.exp(-np.arange(of.scenario.steps) / 3)


def early_collapse(of: Draw) -> None:
    of.metrics["actor/entropy"] *= 0.1 + 0.9 * still_healthy(of)


def early_shortening(of: Draw) -> None:
    of.length *= (1 / 3 + 2 / 3 * still_healthy(of))[:, None]


def early_unverified(of: Draw) -> None:
    of.metrics["verifier/unverified"] = of.metrics["verifier/unverified"] + 0.15 * (1 - still_healthy(of))


def fall_after_the_first_validation(of: Draw) -> None:
    of.held_out_rates[1:] *= 0.72


def early_contradictions(of: Draw) -> None:
    share = 0.15 + 0.35 * (1 - still_healthy(of))
    pairs = of.extensions["dagrpo_pairs"].astype(int)
    of.extensions["dagrpo_pairs_contradicted"] = of.rng.binomial(pairs, share[:, None]).astype(float)


@dataclass(frozen=True)
class Fault:
    """Something wrong in a run.

    Attributes:
        finding: name of the finder that should find it.
        about: what is wrong.
        scenario: a healthy scenario.
        apply: changes a draw of the scenario.
    """

    finding: str
    about: str
    scenario: Scenario
    apply: Callable[[Draw], None]


HALF = Scenario(law=(4.0, 4.0), held_out=500)
#: The number of a fault is part of the seed of its runs: add new ones at the end.
FAULTS = [
    Fault("silent", "70% of the groups are silent", Scenario(), silence),
    Fault("noisy", "40% of the groups depend on one response", Scenario(law=(4.0, 4.0), prompts=300), dependence),
    Fault("alone", "10% of the groups have one response", Scenario(), singles),
    Fault("unused", "30% of the groups are surplus", Scenario(), leave(1, 0.3)),
    Fault("failed", "5% of the groups failed", Scenario(), leave(3, 0.05)),
    Fault("failing", "one response in 800 lost its reward", Scenario(), lost_rewards),
    Fault("slow", "rewards take 80% of a step", Scenario(), scaled("reward/share_of_step", 4)),
    Fault("shifted_verdicts", "accuracy drops from .5 to .2 within a step", HALF, shift),
    Fault(
        "rising_unverified", "unverified responses rise from 2% to 17%", Scenario(), raised("verifier/unverified", 0.15)
    ),
    Fault("entropy", "entropy falls to a tenth", Scenario(), scaled("actor/entropy", 0.1)),
    Fault("length", "responses become a third as long", Scenario(), shorten),
    Fault("cut", "half of the responses are cut off", Scenario(), scaled("response_length/clip_ratio", 5)),
    Fault("unlearning", "500 held-out prompts: from .5 to .4", HALF, fall(0.2)),
    Fault("gradient_spikes", "one gradient norm of 1e10", Scenario(), spike),
    Fault("oscillating_loss", "the loss scatters 20 times as much", Scenario(), scaled("actor/pg_loss", 20)),
    Fault("strong_pull", "a pull of three times the push", Scenario(), scaled("gvpo/pull_over_push", 5)),
    Fault("frozen_anchor", "the anchor stays at .3 and the accuracy at .5", HALF, frozen),
    Fault(
        "wrong_rates",
        "under a budget, solve rates rise from .5 to .97",
        Scenario(law=(8.0, 8.0), prompts=200, budget=True),
        mastered,
    ),
    Fault("slow_judge", "the judge takes 80% of a step", Scenario(), scaled("judge/share_of_step", 4)),
    Fault("tied_scores", "the judge scores 70% of the pairs alike", Scenario(), scaled("dagrpo/pairs/tied", 3.5)),
    Fault("contradicted_verifier", "the judge contradicts half of the pairs", Scenario(), more_contradictions),
    Fault("drifting_judge", "the mean score rises by 3 of 10", Scenario(), shift_scores),
    Fault("few_pairs_kept", "the mask keeps no pair", Scenario(), few_kept),
    Fault("failed_judgements", "10% of the judgements fail", Scenario(), failed_judgements),
    Fault(
        "missing_demonstrations",
        "one demonstration in a hundred is found",
        Scenario(),
        scaled("dagrpo/demonstrations/found", 0.01),
    ),
    Fault("entropy", "entropy falls to a tenth within the first steps", Scenario(), early_collapse),
    Fault("length", "responses become a third as long within the first steps", Scenario(), early_shortening),
    Fault(
        "rising_unverified",
        "unverified responses rise from 2% to 17% within the first steps",
        Scenario(),
        early_unverified,
    ),
    Fault(
        "unlearning",
        "500 held-out prompts: from .5 to .36 after the first of 20 validations",
        HALF,
        fall_after_the_first_validation,
    ),
    Fault(
        "drifting_judge",
        "the judge contradicts 15% of the pairs, and 50% after the first steps",
        Scenario(),
        early_contradictions,
    ),
]


def finders() -> dict[str, Finder]:
    """All finders of the package and of its extensions, by the name of their function."""
    of_extensions = [finder for of in declarations() if of.findings for finder in load(of.findings)]
    return {finder.__name__: finder for finder in (*FINDERS, *of_extensions)}  # type: ignore[attr-defined]


def alarms(scenario: Scenario, rng: np.random.Generator, fault: Callable[[Draw], None] | None = None) -> set[str]:
    """Names of the finders that find something in one run."""
    of = draw(scenario, rng)
    if fault is not None:
        fault(of)
    run = run_of(of)
    table = step_table(run)
    return {name for name, finder in finders().items() if any(True for _ in finder(table, run.config))}


def upper_bound(count: int, runs: int) -> float:
    """The upper end of Clopper and Pearson's one-sided 95% interval."""
    return float(beta.ppf(0.95, count + 1, runs - count)) if count < runs else 1.0


def is_true(name: str, scenario: Scenario) -> bool:
    """Whether a finding states a fact of healthy runs of this kind.

    Most of their groups are silent, their budget forgets visits before the prompts return, or its solve rates are
    outdated because the policy learns.
    """
    is_forgetful = scenario.prompts / scenario.batch >= 2 * HALF_LIFE
    is_outdated = scenario.budget and (is_forgetful or scenario.learning > 0)
    laws = [scenario.law] + ([scenario.second.law] if scenario.second else [])
    is_silent = any(min(law) < 0.6 or posterior_silent_rate(0, 0, scenario.size, law) > 0.45 for law in laws)
    return (name == "silent" and is_silent) or (name == "wrong_rates" and is_outdated)


def table(figures: dict[str, Any]) -> str:
    """The Markdown tables of docs/findings.md."""
    runs = figures["runs"]
    bound = upper_bound(0, runs)
    lines = [
        f"| healthy runs | pages with a false alarm, of {runs} | findings |",
        "|---|---|---|",
        *(
            f"| {name} | {page['false']} | {', '.join(f'{alarm} {n}' for alarm, n in figures['false'][name].items())} |"
            for name, page in figures["pages"].items()
        ),
        "",
        f"None of {runs} means at most {100 * bound:.1f}% with 95% confidence.",
        "",
        "| finding | fault | found | false alarms in all healthy runs |",
        "|---|---|---|---|",
    ]
    healthy = sum(page["runs"] for page in figures["pages"].values())
    for of in figures["power"]:
        false = sum(counts.get(of["finding"], 0) for counts in figures["false"].values())
        lines.append(f"| `{of['finding']}` | {of['fault']} | {of['found'] / of['runs']:.1%} | {false} of {healthy} |")
    return "\n".join(lines) + "\n"


def main(
    runs: Annotated[int, typer.Option(help="runs per scenario and per fault")] = 300,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option(help="where the figures are written")] = RESULTS,
) -> None:
    """Write the table of false alarms and power."""
    false = {name: Counter[str]() for name in HEALTHY}
    pages = Counter[str]()
    for number, (name, scenario) in enumerate(HEALTHY.items()):
        for run in range(runs):
            found = alarms(scenario, np.random.default_rng([seed, 0, number, run]))
            wrong = {alarm for alarm in found if not is_true(alarm, scenario)}
            false[name].update(wrong)
            pages[name] += bool(wrong)
        print(f"{name}: {pages[name]} of {runs} pages have a false alarm", dict(false[name]), flush=True)
    power = []
    for number, fault in enumerate(FAULTS):
        found = sum(
            fault.finding in alarms(fault.scenario, np.random.default_rng([seed, 1, number, run]), fault.apply)
            for run in range(runs)
        )
        power.append({"finding": fault.finding, "fault": fault.about, "found": found, "runs": runs})
        print(f"{fault.finding} ({fault.about}): {found} of {runs}", flush=True)
    figures = {
        "runs": runs,
        "seed": seed,
        "pages": {name: {"false": pages[name], "runs": runs} for name in HEALTHY},
        "false": {name: dict(sorted(counts.items())) for name, counts in false.items()},
        "power": power,
    }
    output.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    typer.run(main)
