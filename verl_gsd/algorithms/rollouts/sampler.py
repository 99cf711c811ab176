"""Which prompts a step generates for: drawn by how much their answers are expected to disagree (``sampler``).

A draw is of ``data.train_batch_size`` distinct prompts and is made when its first prompt is asked for. It knows every
step that is over by then, and nothing of groups on their way: in mode ``gsd_sync`` all steps before the one at hand, in
asynchronous modes, which generate ahead, those before it was submitted. Where groups are refilled or generated ahead, a
prompt of one draw may be on its way when the next draws it again.

A draw is a function of ``data.seed``, its number and the memory of prompts, all of which a checkpoint has. A resume
therefore draws what an uninterrupted run would have drawn, as long as numpy's generator stays the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from verl_gsd.algorithms.rollouts.sampler_settings import SamplerSettings
from verl_gsd.errors import ConfigError
from verl_gsd.extension import Extension, Services
from verl_gsd.groups import Group
from verl_gsd.planning.visits import chances, draw, effective_number, expected_disagreement
from verl_gsd.prompts import PromptCounts, PromptStore
from verl_gsd.run.dataset import PromptKeys


class DisagreementSampler(Sampler[int]):
    """Rows of a data set, draw after draw; a pass, after which verl starts another, has as many draws as are whole.

    Args:
        keys: of the data set's rows.
        store: what is known of prompts.
        count: prompts a draw.
        prior: (a, b) of Beta, of a prompt's solve rate before its first visit.
        explore: share of the chance that is the same for all; ``planning/visits.py`` says what it is good for.
        seed: any whole number.
        step: the trainer step at hand.

    Attributes:
        seconds: spent drawing since somebody set it to 0.

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
                f"data.train_batch_size={count}: the training data has {len(self._rows)} prompts. Set it to that "
                "or less."
            )
        self._store, self._step, self._prior = store, step, prior
        self._count, self._explore, self._seed = count, explore, seed
        self._draws = 0
        self._waiting: list[int] = []  # drawn and not asked for yet, the next one last
        self._figures: dict[str, float] = {}
        self.seconds = 0.0

    def __len__(self) -> int:
        return self._draws_a_pass * self._count

    def __iter__(self) -> Iterator[int]:
        while True:
            if not self._waiting:
                self._draw()
            yield self._waiting.pop()
            if not self._waiting and self._draws % self._draws_a_pass == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self._rows), "draws": self._draws, "waiting": list(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws, self._waiting = state["draws"], list(state["waiting"])

    def metrics(self) -> dict[str, float]:
        """Of the last draw: ``sampler/frac_new`` (prompts of which nothing is known that counts),
        ``sampler/disagreement/{drawn,everywhere}`` (its posterior mean, over what was drawn and over the data set) and
        ``sampler/effective_prompts`` (as many prompts of equal chance would be met again as often).
        """
        return dict(self._figures)

    @property
    def _draws_a_pass(self) -> int:
        return len(self._rows) // self._count

    def _draw(self) -> None:
        start = time.perf_counter()
        correct, total = self._rows.counts(self._store.all_recent(self._step()))
        disagreement = expected_disagreement(correct, total, self._prior)
        chance = chances(disagreement, self._explore)
        drawn = draw(chance, self._count, np.random.default_rng([self._seed % 2**64, self._draws]))
        self._draws += 1
        self._waiting = drawn[::-1].tolist()
        self._figures = {
            "sampler/frac_new": float((total[drawn] == 0).mean()),
            "sampler/disagreement/drawn": float(disagreement[drawn].mean()),
            "sampler/disagreement/everywhere": float(disagreement.mean()),
            "sampler/effective_prompts": effective_number(chance),
        }
        self.seconds += time.perf_counter() - start


class _Rows:
    """Which rows of a data set a store's prompts are; each prompt is looked up once, until some are forgotten."""

    def __init__(self, keys: PromptKeys) -> None:
        self._of_source: dict[str, tuple[int, np.ndarray]] = {}  # number of its first prompt; its indices in order
        self._prompt: np.ndarray = np.zeros(len(keys.index), np.int64)  # by row; rows may be of one prompt
        self._n_prompts = 0
        for number, name in enumerate(keys.sources):
            rows = np.flatnonzero(keys.source == number)
            distinct, which = np.unique(keys.index[rows], return_inverse=True)
            self._of_source[name] = (self._n_prompts, distinct)
            self._prompt[rows] = self._n_prompts + which
            self._n_prompts += len(distinct)
        self._source: np.ndarray = np.zeros(0, np.int32)  # of the store's prompts
        self._index: np.ndarray = np.zeros(0, np.int64)
        self._known: np.ndarray = np.zeros(0, np.int64)  # which prompt each is; -1 where it is none of the data set's

    def __len__(self) -> int:
        return len(self._prompt)

    def counts(self, known: PromptCounts) -> tuple[np.ndarray, np.ndarray]:
        """(correct, total) of every row, (n_rows,) each."""
        self._look_up(known)
        ours = self._known >= 0
        found = []
        for figure in (known.correct, known.total):
            by_prompt = np.zeros(self._n_prompts)
            by_prompt[self._known[ours]] = figure[ours]
            found.append(by_prompt[self._prompt])
        return found[0], found[1]

    def _look_up(self, known: PromptCounts) -> None:
        before = len(self._known)
        if not (
            np.array_equal(self._index, known.index[:before]) and np.array_equal(self._source, known.source[:before])
        ):
            self._known, before = self._known[:0], 0
        source, index = known.source[before:], known.index[before:]
        which: np.ndarray = np.full(len(index), -1)
        for number in np.unique(source):
            first, distinct = self._of_source.get(known.sources[number], (0, np.zeros(0, np.int64)))
            here = np.flatnonzero(source == number)
            place = np.asarray(np.searchsorted(distinct, index[here]))
            found = np.append(distinct, 0)[place] == index[here]
            found &= place < len(distinct)
            which[here[found]] = first + place[found]
        self._known = np.concatenate([self._known, which])
        self._source, self._index = known.source.copy(), known.index.copy()


class Drawing(Extension):
    """Has the prompts of every step drawn by a ``DisagreementSampler``.

    Args:
        settings: of ``algorithm.gsd.sampler``, or that section.
    """

    _sampler: DisagreementSampler | None = None

    def __init__(self, settings: SamplerSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = SamplerSettings.of(settings)
        super().__init__(self._settings, services)
        if services is not None:  # both read one memory; a budget has said the same of it, if there is one
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

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        return self._sampler.metrics() if self._sampler else {}

    def seconds(self) -> dict[str, float]:
        """``draw``: seconds spent drawing."""
        if self._sampler is None:
            return {}
        spent, self._sampler.seconds = self._sampler.seconds, 0.0
        return {"draw": spent}
