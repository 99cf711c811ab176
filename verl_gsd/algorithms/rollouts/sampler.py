"""The trainer extension that samples the prompts of each step by the expected disagreement of their answers.

A draw samples ``data.train_batch_size`` distinct prompts. It happens when the trainer requests the first of them, and
uses the results of all steps that have ended by then. Groups in flight do not count. In mode ``gsd_sync``, these are
all steps before the current one. Asynchronous modes generate ahead, so they are the steps before the draw was
submitted. If groups are refilled or generated ahead, a prompt may be drawn again while it is still in flight.

A draw is a function of ``data.seed``, its number and the memory of prompts. A checkpoint has all three. After a resume,
the sampler therefore draws the same prompts as an uninterrupted run, as long as numpy's generator stays the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from verl_gsd.algorithms.rollouts.sampler_settings import SamplerSettings
from verl_gsd.algorithms.rollouts.verdicts import require_accuracies
from verl_gsd.errors import ConfigError
from verl_gsd.extension import Extension, Services
from verl_gsd.groups import Group, Member
from verl_gsd.planning.visits import chances, draw, effective_number, expected_disagreement
from verl_gsd.prompts import PromptCounts, PromptStore
from verl_gsd.run.dataset import PromptKeys


class DisagreementSampler(Sampler[int]):
    """Samples rows of a data set, one draw after another.

    A pass has as many complete draws as fit into the data set. verl then starts the next pass.

    Args:
        keys: the prompts of the data set's rows.
        store: the memory of prompts.
        count: prompts per draw.
        prior: (a, b) of the Beta distribution of a prompt's solve rate before its first visit.
        explore: share of the probability that is equal for all prompts; ``planning/visits.py`` explains its purpose.
        seed: any integer.
        step: returns the current trainer step.

    Attributes:
        seconds: time spent drawing. The caller resets it to 0.

    Raises:
        ConfigError: the data set has fewer rows than a draw.
    """

    def __init__(
        self,
        keys: PromptKeys,
        store: PromptStore,
        *,
        count: int,
        explore: float,
        seed: int,
        step: Callable[[], int],
        prior: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self._rows = _Rows(keys)
        if len(self._rows) < count:
            raise ConfigError(
                f"data.train_batch_size={count}: the training data has only {len(self._rows)} prompts. Set it to "
                f"{len(self._rows)} or less."
            )
        self._store, self._step, self._prior = store, step, prior
        self._count, self._explore, self._seed = count, explore, seed
        self._draws = 0
        self._waiting: list[int] = []  # rows that were drawn but not requested yet, in reverse order
        self._metrics: dict[str, float] = {}
        self.seconds = 0.0

    def __len__(self) -> int:
        return self._draws_per_pass * self._count

    def __iter__(self) -> Iterator[int]:
        while True:
            if not self._waiting:
                self._draw()
            yield self._waiting.pop()
            if not self._waiting and self._draws % self._draws_per_pass == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self._rows), "draws": self._draws, "waiting": list(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws, self._waiting = state["draws"], list(state["waiting"])

    def metrics(self) -> dict[str, float]:
        """Metrics of the last draw, named ``sampler/...``.

        - ``frac_new``: share of the drawn prompts without an earlier visit that counts
        - ``disagreement/drawn``, ``disagreement/everywhere``: mean of the posterior expected disagreement, over the
          drawn prompts and over the whole data set
        - ``effective_prompts``: the number of prompts with equal probabilities that would be visited again as often
        """
        return dict(self._metrics)

    @property
    def _draws_per_pass(self) -> int:
        return len(self._rows) // self._count

    def _draw(self) -> None:
        start = time.perf_counter()
        correct, total, partial = self._rows.counts(self._store.all_recent(self._step()))
        disagreement = expected_disagreement(correct, total, self._prior, partial=partial)
        chance = chances(disagreement, self._explore)
        drawn = draw(chance, self._count, np.random.default_rng([self._seed % 2**64, self._draws]))
        self._draws += 1
        self._waiting = drawn[::-1].tolist()
        self._metrics = {
            "sampler/frac_new": float((total[drawn] == 0).mean()),
            "sampler/disagreement/drawn": float(disagreement[drawn].mean()),
            "sampler/disagreement/everywhere": float(disagreement.mean()),
            "sampler/effective_prompts": effective_number(chance),
        }
        self.seconds += time.perf_counter() - start


class _Rows:
    """Maps a store's prompts to the rows of a data set. It looks up each prompt once, until the store drops some."""

    def __init__(self, keys: PromptKeys) -> None:
        # source -> number of its first prompt, and its sorted indices
        self._prompts_by_source: dict[str, tuple[int, np.ndarray]] = {}
        # Number of each row's prompt. Several rows may have the same prompt.
        self._prompt: np.ndarray = np.zeros(len(keys.index), np.int64)
        self._n_prompts = 0
        for number, name in enumerate(keys.sources):
            rows = np.flatnonzero(keys.source == number)
            distinct, inverse = np.unique(keys.index[rows], return_inverse=True)
            self._prompts_by_source[name] = (self._n_prompts, distinct)
            self._prompt[rows] = self._n_prompts + inverse
            self._n_prompts += len(distinct)
        # Source and index of each of the store's prompts.
        self._source: np.ndarray = np.zeros(0, np.int32)
        self._index: np.ndarray = np.zeros(0, np.int64)
        # Our number of each of the store's prompts; -1 if it is not in the data set.
        self._number: np.ndarray = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._prompt)

    def counts(self, stored: PromptCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(correct, total, partial) of every row, (n_rows,) each."""
        self._look_up(stored)
        in_data = self._number >= 0
        counts_by_row = []
        for counts in (stored.correct, stored.total, stored.partial):
            by_prompt = np.zeros(self._n_prompts)
            by_prompt[self._number[in_data]] = counts[in_data]
            counts_by_row.append(by_prompt[self._prompt])
        return counts_by_row[0], counts_by_row[1], counts_by_row[2]

    def _look_up(self, stored: PromptCounts) -> None:
        before = len(self._number)
        if not (
            np.array_equal(self._index, stored.index[:before]) and np.array_equal(self._source, stored.source[:before])
        ):
            self._number, before = self._number[:0], 0
        source, index = stored.source[before:], stored.index[before:]
        new_numbers: np.ndarray = np.full(len(index), -1)
        for number in np.unique(source):
            first, distinct = self._prompts_by_source.get(stored.sources[number], (0, np.zeros(0, np.int64)))
            of_source = np.flatnonzero(source == number)
            position = np.asarray(np.searchsorted(distinct, index[of_source]))
            in_data = np.append(distinct, 0)[position] == index[of_source]
            in_data &= position < len(distinct)
            new_numbers[of_source[in_data]] = first + position[in_data]
        self._number = np.concatenate([self._number, new_numbers])
        self._source, self._index = stored.source.copy(), stored.index.copy()


class SamplerExtension(Extension):
    """Samples the prompts of every step with a ``DisagreementSampler``.

    Args:
        settings: settings or config section of ``algorithm.gsd.sampler``.
    """

    _sampler: DisagreementSampler | None = None

    def __init__(self, settings: SamplerSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = SamplerSettings.of(settings)
        super().__init__(self._settings, services)
        if services is not None:  # a budget reads the same memory; the checks require that both half-lives are equal
            services.prompts.half_life = self._settings.half_life

    def draw_prompts(self, dataset: PromptKeys, count: int, seed: int) -> DisagreementSampler:
        services = self.services
        self._sampler = DisagreementSampler(
            dataset,
            services.prompts,
            count=count,
            explore=self._settings.explore,
            seed=seed,
            step=lambda: services.step,
            prior=services.prompts.prior,
        )
        return self._sampler

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, Any]:
        """No columns. Checks the groups before their update.

        Raises:
            ValueError: a response has no accuracy in [0, 1], or its data source is unrated.
        """
        require_accuracies(left, self.services.prompts.unrated, "algorithm.gsd.sampler")
        return {}

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        return self._sampler.metrics() if self._sampler else {}

    def seconds(self) -> dict[str, float]:
        """``draw``: seconds spent drawing."""
        if self._sampler is None:
            return {}
        seconds, self._sampler.seconds = self._sampler.seconds, 0.0
        return {"draw": seconds}
