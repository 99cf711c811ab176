"""The table of a run from which charts and findings are made: one row per step, one column per figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import gammaln

from verl_gsd.base_names import PASS_KS
from verl_gsd.extension import declarations
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.planning.distinct import distinct_rows
from verl_gsd.planning.law import likely_law
from verl_gsd.planning.pass_at_k import pass_at_k
from verl_gsd.records import EASY, HARD, float_column, generated, gradient_mass, is_graded, is_silent
from verl_gsd.report.answers import order_by_prompt, revisited_answers
from verl_gsd.report.reading import Columns, RunData
from verl_gsd.rundir import ENTROPY

#: What a rollout was used for. taught: its group was trained on and has a gradient, because its rewards differ or
#: because it has a demonstration; silent: its group was trained on without a gradient; the others are fates of groups
#: that were not trained on.
USES = ("taught", "silent", "filtered", "surplus", "stale", "failed")
#: ``step_table`` has figures of data sources that have at least this share of the groups. The figures of a source with
#: fewer groups are mostly noise.
_LEAST_SHARE = 0.01
#: Jeffreys' prior of a solve rate, which is also the default of the memory of prompts.
_PRIOR = (0.5, 0.5)
_BUDGET_PRIOR = "algorithm.gsd.budget.prior"
#: The averages of verl's losses that are nats per token for an entropy.
_PER_TOKEN = ("token-mean", "seq-mean-token-mean")


def step_table(run: RunData) -> Columns:
    """Compute the table of a run: ``step``, all columns of ``run.metrics``, and these figures from its records.

    A figure is NaN at steps that have no group to compute it from.

    - ``groups``, ``rollouts``, ``tokens``: numbers of them. Demonstrations and responses of earlier visits were not
      generated in the step and are not rollouts.
    - ``accuracy``: mean over groups of the mean accuracy of their rollouts. Each group counts once: a budget gives more
      rollouts to prompts that disagree, which would move a mean over rollouts while the policy stays the same.
    - ``tokens_per_response``: mean over all rollouts.
    - ``reward``, ``reward_spread``: mean and standard deviation of the responses' rewards. Each group counts once.
    - ``unrated``: share of the rollouts that have no accuracy, because their data source has none.
      ``without_acc``: share of the rollouts for which the verifier returned no ``acc``. They count as wrong if their
      data source has accuracies.
    - ``source_column(figure, source)`` of ``accuracy``, ``reward``, ``reward_spread``, ``unrated``,
      ``tokens_per_response`` and ``likely_*``: the same for one data source (``sources_of``). Only in runs with
      several. These sources also have ``unverified``, which is the metric ``verifier/unverified``, and the numbers of
      ``groups_answered``, which have responses, and of those that are ``groups_{silent,all_wrong,all_right,equal}``.
    - ``mixed``, ``all_right``, ``all_wrong``, ``equal``, ``silent``, ``alone``: shares of the groups that have
      responses. The first four are the record column ``kind``, which goes by the verdicts. ``silent``: see
      ``is_silent``; ``alone`` is a group of one response.
    - ``shaped``: share of the groups whose verdicts are equal and whose rewards differ. Only groups of the visit's own
      responses count: the verdicts of a group do not include earlier responses and demonstrations, but its rewards do.
      ``graded``: the same, with the groups in which a response is partly right.
    - ``sigma``: mean standard deviation of a group's rewards.
    - ``rollouts_<use>``, ``tokens_<use>``: numbers, for each use in ``USES``. ``failed``: share of all groups.
    - ``lost_rewards``: number of responses without a reward. They do not count as rollouts.
    - ``seen_silent``, ``seen_predicted``: of the groups whose prompt was visited before, the share that is all right or
      all wrong, and the share that earlier visits predict. ``seen_predicted_without_forgetting``: the share that they
      predict if all of them count the same. ``seen_predicted_by_law``: the same under the likeliest law of
      solve rates as the prior, Beta(``law_a``, ``law_b``), which the first visits to prompts tell.
    - ``likely_{groups,silent,predicted}``: sums over the groups that are likely to be mixed, given how many of all
      responses to their prompt so far were right: their number, how many are all right or all wrong, and the
      expectation. ``likely_wrong{,_predicted,_variance}``: how many of these have no right response, the expectation of
      this, and its variance. See ``_given_totals``.
    - ``entropy``: of the policy, in nats per token. Runs of older versions do not have it if their loss is averaged in
      another way than over tokens (``_entropy``).
    - ``gain_{hard,between,easy}``: shares of the gradient mass of the groups trained on, by the group's accuracy.
    - ``demonstrated``: share of the groups with a demonstration.
    - ``distinct_answers``: mean number of different final answers of a group, if the verifier returns answers.
    - ``answers_in_visit``, ``answers_in_visits``: expected number of different final answers in equal numbers of
      responses, of the groups alone and pooled with all earlier visits to their prompts; mean over the groups whose
      prompt was visited before (``answers.revisited_answers``).
    - ``pass_at_<k>``: mean over groups of the unbiased estimate of pass@k, for k = 1 and ``base_names.PASS_KS``. NaN at
      steps with a group of fewer than k accuracies, or with accuracies between 0 and 1.
    - The figures that extensions declare (``declaration.StepFigure``).
    """
    figures = _record_figures(run.records, run.config) if len(run.records) else {"step": np.zeros(0, np.int64)}
    steps = np.union1d(figures["step"], run.metrics["step"])
    table: Columns = {"step": steps}
    for source in (run.metrics, figures):
        rows = np.searchsorted(steps, source["step"])
        for name, values in source.items():
            if name != "step":
                table[name] = np.full(len(steps), np.nan)
                table[name][rows] = values
    table["entropy"] = _entropy(table, run.config)
    return table


def _entropy(table: Columns, config: Mapping[str, Any]) -> np.ndarray:
    """The metric ``rundir.ENTROPY``, or verl's ``actor/entropy`` if that is a mean over tokens.

    verl averages it like the loss. In the other modes it is a sum over tokens, so that it grows with the length.
    """
    if ENTROPY not in table and config.get("actor_rollout_ref.actor.loss_agg_mode", "token-mean") not in _PER_TOKEN:
        return column(table, ENTROPY)
    return column(table, ENTROPY if ENTROPY in table else "actor/entropy")


def column(table: Columns, name: str) -> np.ndarray:
    """Return the column ``name``. If the table has no such column, all values are NaN."""
    return table[name] if name in table else np.full(len(table["step"]), np.nan)


def source_column(figure: str, source: str) -> str:
    """Name of the column with a figure of one data source."""
    return f"by_source/{figure}/{source}"


def sources_of(table: Columns) -> list[str]:
    """The data sources that have columns of their own; none if a run has a single one."""
    start = source_column("accuracy", "")
    return [name.removeprefix(start) for name in table if name.startswith(start)]


def group_accuracies(records: pa.Table) -> np.ndarray:
    """(N,) mean accuracy of each group's responses; NaN if none has an accuracy."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float_column(records, "correct") / float_column(records, "total")


def is_one_of(records: pa.Table, name: str, *values: str) -> np.ndarray:
    """(N,) bool: whether the string column ``name`` has one of ``values``. False where it is null."""
    return pc.is_in(records[name], value_set=pa.array(values)).to_numpy()


class _StepSums:
    """Sums and means per step over the rows of the records, which are in the order of the steps."""

    def __init__(self, records: pa.Table) -> None:
        self.steps, self._first, self.row = np.unique(
            records["step"].to_numpy(), return_index=True, return_inverse=True
        )
        encoded = pc.dictionary_encode(records["data_source"].combine_chunks())
        self._sources, self._source = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()

    def total(self, values: np.ndarray, where: np.ndarray | bool = True) -> np.ndarray:
        """Sum per step over rows where ``where`` is true. NaN counts as 0."""
        return np.add.reduceat(np.where(where & ~np.isnan(values), values, 0.0), self._first)

    def count(self, where: np.ndarray) -> np.ndarray:
        """Number of rows per step where ``where`` is true."""
        return np.add.reduceat(where, self._first, dtype=np.int64)

    def mean(self, values: np.ndarray, where: np.ndarray | bool, weight: np.ndarray | None = None) -> np.ndarray:
        """Weighted mean per step over rows where ``where`` is true and neither value nor weight is NaN.

        NaN for steps whose weights sum to 0.
        """
        known = where & ~np.isnan(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            if weight is None:
                return self.total(values, known) / self.count(known)
            return self.total(values * weight, known) / self.total(weight, known)

    def smallest(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Smallest value per step over rows where ``where`` is true; infinity if there is none."""
        return np.minimum.reduceat(np.where(where, values, np.inf), self._first)

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """Expand one value per step, or per step and data source, to one value per row."""
        return values[self.row] if values.ndim == 1 else values[self.row, self._source]

    @property
    def has_several_sources(self) -> bool:
        return len(self._sources) > 1

    def total_of_sources(self, values: np.ndarray) -> np.ndarray:
        """Sum per step and data source, (steps, sources). NaN counts as 0."""
        shape = len(self.steps), len(self._sources)
        cell = self.row * shape[1] + self._source
        return np.bincount(cell, np.nan_to_num(values), shape[0] * shape[1]).reshape(shape)

    def source_columns(self, figures: Columns) -> Columns:
        """The columns of each data source that has at least ``_LEAST_SHARE`` of the groups.

        Args:
            figures: name -> (steps, sources).
        """
        kept = np.flatnonzero(np.bincount(self._source) >= _LEAST_SHARE * len(self._source))
        return {
            source_column(name, self._sources[number]): values[:, number]
            for name, values in figures.items()
            for number in kept
        }

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        """Sum of ``numerator`` divided by the sum of ``denominator``, per step, over rows that have both.

        NaN for steps where both sums are 0.
        """
        known = ~np.isnan(numerator) & ~np.isnan(denominator)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.total(numerator, known) / self.total(denominator, known)


def _record_figures(records: pa.Table, config: Mapping[str, Any]) -> Columns:
    step = records["step"].to_numpy()
    if (step[1:] < step[:-1]).any():  # the file of a step has rows of others
        records = records.sort_by("step")
    sums = _StepSums(records)
    table: Columns = {"step": sums.steps.astype(np.int64)}
    for figures in (
        _group_figures,
        _source_figures,
        _diversity_figures,
        _use_figures,
        _gain_figures,
        _extension_figures,
    ):
        table |= figures(records, sums)
    return table | _prediction_figures(records, sums, config.get(_BUDGET_PRIOR))


def _group_figures(records: pa.Table, sums: _StepSums) -> Columns:
    size, tokens, rated = (float_column(records, name) for name in ("size", "tokens", "total"))
    mean, std = float_column(records, "mean"), float_column(records, "std")
    rollouts = generated(records)
    has_responses = size > 0
    reward = sums.mean(mean, has_responses)
    variance = sums.mean(std**2 + (mean - sums.per_row(reward)) ** 2, has_responses)
    kinds: Columns = {
        kind: is_one_of(records, "kind", kind).astype(float) for kind in ("mixed", "all_right", "all_wrong", "equal")
    }
    silent, demonstrations = is_silent(records), float_column(records, "demonstrations")
    has_others = (rollouts < size) | (demonstrations > 0)
    is_shaped = ~is_one_of(records, "kind", "mixed") & ~silent
    is_partly_right = np.nan_to_num(float_column(records, "partial")) > 0
    return {
        "groups": sums.count(np.ones(len(size), dtype=bool)).astype(float),
        "rollouts": sums.total(rollouts),
        "tokens": sums.total(tokens),
        "tokens_per_response": sums.ratio(tokens, rollouts),
        "lost_rewards": sums.total(float_column(records, "failed_rewards")),
        **{kind: sums.mean(is_kind, has_responses) for kind, is_kind in kinds.items()},
        "silent": sums.mean(silent.astype(float), has_responses),
        "shaped": sums.mean(is_shaped.astype(float), has_responses & ~has_others),
        "graded": sums.mean((is_shaped | is_partly_right).astype(float), has_responses & ~has_others),
        "alone": sums.mean((size == 1).astype(float), has_responses),
        "sigma": sums.mean(std, has_responses),
        "reward": reward,
        "reward_spread": np.sqrt(variance),
        "unrated": sums.ratio(rollouts - rated, rollouts),
        "without_acc": sums.ratio(float_column(records, "without_acc"), rollouts),
        "accuracy": sums.mean(group_accuracies(records), rated > 0),
        "demonstrated": sums.mean((demonstrations > 0).astype(float), has_responses),
    }


def _source_figures(records: pa.Table, sums: _StepSums) -> Columns:
    if not sums.has_several_sources:
        return {}
    total = sums.total_of_sources
    size, rated, rollouts = float_column(records, "size"), float_column(records, "total"), generated(records)
    mean, std = float_column(records, "mean"), float_column(records, "std")
    unverified, verified = _unverified(records)
    has_responses = size > 0
    kinds = {"silent": is_silent(records)} | {
        kind: is_one_of(records, "kind", kind) for kind in ("all_wrong", "all_right", "equal")
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        reward = total(np.where(has_responses, mean, 0.0)) / total(has_responses)
        deviation = std**2 + (mean - sums.per_row(reward)) ** 2
        variance = total(np.where(has_responses, deviation, 0.0)) / total(has_responses)
        return sums.source_columns(
            {
                "accuracy": total(np.where(rated > 0, group_accuracies(records), 0.0)) / total(rated > 0),
                "reward": reward,
                "reward_spread": np.sqrt(variance),
                "unrated": total(rollouts - rated) / total(rollouts),
                "unverified": total(unverified) / total(verified),
                "tokens_per_response": total(float_column(records, "tokens")) / total(rollouts),
                "groups_answered": total(has_responses),
                **{f"groups_{kind}": total(is_kind & has_responses) for kind, is_kind in kinds.items()},
            }
        )


def _unverified(records: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: responses that the verifier could not verify, and all with a verdict. NaN if it does not report it."""
    unverified, rated = float_column(records, "unverified"), float_column(records, "total")
    is_reported = ~np.isnan(unverified) & (rated > 0)
    return np.where(is_reported, unverified, np.nan), np.where(is_reported, rated, np.nan)


def _diversity_figures(records: pa.Table, sums: _StepSums) -> Columns:
    correct, rated = float_column(records, "correct"), float_column(records, "total")
    figures = {"distinct_answers": sums.mean(float_column(records, "distinct_answers"), True)}
    revisited = revisited_answers(records)
    for name in ("in_visit", "in_visits"):
        answers: np.ndarray = np.full(len(records), np.nan)
        answers[revisited.row] = getattr(revisited, name)
        figures[f"answers_{name}"] = sums.mean(answers, True)
    is_rated = rated > 0
    smallest = sums.smallest(rated, is_rated)
    is_binary = sums.total(is_graded(records).astype(float)) == 0
    for k in (1, *PASS_KS):
        is_usable = is_binary & (smallest >= k)
        where = is_rated & sums.per_row(is_usable)
        estimates: np.ndarray = np.full(len(rated), np.nan)
        estimates[where] = pass_at_k(rated[where].astype(np.int64), correct[where].astype(np.int64), k)
        figures[f"pass_at_{k}"] = sums.mean(estimates, True)
    return figures


def _use_figures(records: pa.Table, sums: _StepSums) -> Columns:
    trained = is_one_of(records, "fate", "trained")
    other_uses = {fate: is_one_of(records, "fate", fate) for fate in USES[2:]}
    teaches = ~is_silent(records)
    figures = {"failed": sums.mean(other_uses["failed"].astype(float), True)}
    for use, where in {"taught": trained & teaches, "silent": trained & ~teaches, **other_uses}.items():
        for unit, amounts in (("rollouts", generated(records)), ("tokens", float_column(records, "tokens"))):
            figures[f"{unit}_{use}"] = sums.total(amounts, where)
    return figures


def _gain_figures(records: pa.Table, sums: _StepSums) -> Columns:
    rate, mass = group_accuracies(records), gradient_mass(records)
    ranges = {"hard": rate <= HARD, "between": (rate > HARD) & (rate < EASY), "easy": rate >= EASY}
    return {f"gain_{name}": sums.mean(where.astype(float), ~np.isnan(rate), mass) for name, where in ranges.items()}


def _extension_figures(records: pa.Table, sums: _StepSums) -> Columns:
    taught = is_one_of(records, "fate", "trained") & ~is_silent(records)
    figures: Columns = {}
    for figure in (figure for declaration in declarations() for figure in declaration.step_figures):
        values = float_column(records, figure.column)
        if figure.taught:
            values = np.where(taught, values, np.nan)
        figures[figure.name] = (
            sums.ratio(values, float_column(records, figure.over)) if figure.over else sums.mean(values, True)
        )
    return figures


def _prediction_figures(records: pa.Table, sums: _StepSums, budget_prior: Any) -> Columns:
    """Figures about silent groups and their predictions.

    Args:
        budget_prior: the config's prior of a budget, which is then that of the trainer's memory.
    """
    a, b = budget_prior if isinstance(budget_prior, list | tuple) else _PRIOR
    prior = float(a), float(b)
    predicted = float_column(records, "silent_predicted")
    # The prediction is about verdicts, so it is compared with them and not with ``is_silent``.
    silent: np.ndarray = (~is_one_of(records, "kind", "mixed")).astype(float)
    wrong = np.where(is_one_of(records, "kind", "all_right"), 0.0, silent)
    law = _law_of_first_visits(records) if np.any(~np.isnan(predicted)) else None
    without_forgetting, by_law = _predicted_without_forgetting(records, prior, law or prior)
    silent_given_total, wrong_given_total = _given_totals(records)
    likely_mixed = silent_given_total < 0.5
    of_likely = {
        "likely_groups": np.ones(len(records)),
        "likely_silent": silent,
        "likely_predicted": silent_given_total,
        "likely_wrong": wrong,
        "likely_wrong_predicted": wrong_given_total,
        "likely_wrong_variance": wrong_given_total * (1 - wrong_given_total),
    }
    of_likely = {name: np.where(likely_mixed, values, 0.0) for name, values in of_likely.items()}
    figures = {
        "seen_silent": sums.mean(silent, ~np.isnan(predicted)),
        "seen_predicted": sums.mean(predicted, True),
        "seen_predicted_without_forgetting": sums.mean(without_forgetting, True),
        "seen_predicted_by_law": sums.mean(by_law, True),
        **{
            f"law_{name}": sums.mean(np.full(len(records), x), True) for name, x in zip("ab", law or prior, strict=True)
        },
        **{name: sums.total(values) for name, values in of_likely.items()},
    }
    if sums.has_several_sources:
        figures |= sums.source_columns({name: sums.total_of_sources(values) for name, values in of_likely.items()})
    return figures


def _predicted_without_forgetting(
    records: pa.Table, prior: tuple[float, float], law: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays, (N,) each, NaN where the column ``silent_predicted`` is null.

    - As that column, but visits of all ages count the same. The trainer forgets older visits, so that the two differ if
      it forgets too fast, or if solve rates have changed.
    - The same under ``law`` as the prior.

    Args:
        prior, law: (a, b) of the trainer's Beta prior, and of the law that the first visits follow.
    """
    predicted, by_law = (np.full(len(records), np.nan) for _ in range(2))
    size = float_column(records, "size")
    is_predicted = ~np.isnan(float_column(records, "silent_predicted")) & (size > 0)
    if not is_predicted.any():
        return predicted, by_law
    correct, total = _earlier_counts(records)
    is_predicted &= total > 0  # the memory of a resumed run may have visits without a record
    counts = [values[is_predicted] for values in (correct, total, size)]
    row, kind = distinct_rows(*counts)  # few differ, and the posterior takes longer than finding them
    right, answers, sizes = (values[row] for values in counts)
    for result, assumed in ((predicted, prior), (by_law, law)):
        result[is_predicted] = np.asarray(posterior_silent_rate(right, answers, sizes, assumed))[kind]
    return predicted, by_law


def _law_of_first_visits(records: pa.Table) -> tuple[float, float] | None:
    """The likeliest Beta law of the solve rates, from the first recorded visits to prompts without partial credit."""
    _, earlier = _earlier_counts(records)
    first = (earlier == 0) & ~is_graded(records)
    return likely_law(*(float_column(records, name)[first] for name in ("correct", "total")))


def _given_totals(records: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The probability that a group is all right or all wrong, and all wrong, given all responses so far; (N,) each.

    A prompt with solve rate p had t responses before this group of n, and s of the t + n are right. If p has not
    changed, and responses do not depend on each other, then every way to choose these s is equally likely:

        P(none of the n is right | s) = C(t, s) / C(t + n, s)
        P(all of the n are right | s) = C(t, s - n) / C(t + n, s)

    This needs no law of solve rates. A prediction from the earlier responses alone needs one: of hard prompts, those
    with a right response were lucky. But the equations do not hold if earlier responses have decided whether a prompt
    is visited, or how large its group is (``Declaration.follows_responses``).

    Given the sums after each visit, the visits are independent. So the differences between groups and probabilities
    are not correlated, and the variance of their sum is the sum of the variances.

    Returns:
        NaN where the column ``silent_predicted`` is null, and at first visits.
    """
    correct, total, size = (float_column(records, name) for name in ("correct", "total", "size"))
    before_correct, before = _earlier_counts(records)
    right = before_correct + correct
    known = ~np.isnan(float_column(records, "silent_predicted")) & (before > 0) & (size > 0) & (total == size)
    known &= right == np.rint(right)
    silent, wrong = np.full(len(records), np.nan), np.full(len(records), np.nan)
    if not known.any():
        return silent, wrong
    row, kind = distinct_rows(before[known], size[known], right[known])
    t, n, s = before[known][row], size[known][row], right[known][row]
    ways = _log_binomial(t + n, s)
    none, every = np.exp(_log_binomial(t, s) - ways), np.exp(_log_binomial(t, s - n) - ways)
    silent[known], wrong[known] = (none + every)[kind], none[kind]
    return silent, wrong


def _log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """log C(n, k), (N,); minus infinity if k is below 0 or above n."""
    possible = (k >= 0) & (k <= n)
    k = np.where(possible, k, 0)
    return np.where(possible, gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)


def _earlier_counts(records: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(correct, total), (N,) each: sums over the groups of the same prompt in earlier steps."""
    step, index = records["step"].to_numpy(), records["index"].to_numpy()
    source = pc.dictionary_encode(records["data_source"].combine_chunks()).indices.to_numpy()
    order = order_by_prompt(source, index)  # of a prompt, rows stay in the order of the steps
    n_rows = np.arange(len(order))

    def first_of_run(*keys: np.ndarray) -> np.ndarray:
        """For each position in ``order``: the first position of the run of rows with equal ``keys``."""
        is_first: np.ndarray = np.ones(len(order), dtype=bool)
        is_first[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
        result: np.ndarray = np.maximum.accumulate(np.where(is_first, n_rows, 0))
        return result

    of_prompt, of_visit = first_of_run(source, index), first_of_run(source, index, step)
    sums = []
    for name in ("correct", "total"):
        before = np.concatenate([[0.0], np.cumsum(np.nan_to_num(float_column(records, name))[order])])
        earlier: np.ndarray = np.zeros(len(order))
        earlier[order] = before[of_visit] - before[of_prompt]
        sums.append(earlier)
    return sums[0], sums[1]
