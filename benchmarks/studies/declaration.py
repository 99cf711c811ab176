"""What a study states before it runs: question, hypothesis with its source, measure, arms, tasks and seeds."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "actor_rollout_ref.actor.optim.lr"


@dataclass(frozen=True)
class Tuned:
    """A learning rate that another study has tuned.

    Attributes:
        arm: of the study ``methods``.
        times: factor on its rate.
    """

    arm: str
    times: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: without spaces; names the folder of its runs.
        words: of ``verl-gsd lab train``, without the task, the learning rate and the number of steps.
        rate: its learning rate; None if this study tunes it.
        steps: training steps; None for those of the study. An arm that generates more tokens per step needs fewer.
        tasks: the tasks it runs on; empty for all of the study.
        against: the arm it is compared with; empty for the study's baseline.
    """

    name: str
    words: tuple[str, ...]
    rate: float | Tuned | None = None
    steps: int | None = None
    tasks: tuple[str, ...] = ()
    against: str = ""


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: of its file, of the folder of its runs, and of its results.
        hypothesis: what is expected, with its source.
        measure: what decides, in words. ``analysis.py`` computes it.
        spread: the pilot's spread over seeds, and the number of seeds that follows from it.
        baseline: the arm that the others are compared with. Its runs set the budget of tokens.
        rates: learning rates tried for each arm without a rate.
        steps, validate_every: training steps, and steps between two validations.
        tuning_seeds, seeds: in the notation of ``--seeds``. They have no seed in common.
        correction: for multiple tests.
    """

    name: str
    question: str
    hypothesis: str
    measure: str
    spread: str
    tasks: tuple[str, ...]
    baseline: str
    arms: tuple[Arm, ...]
    rates: tuple[float, ...] = ()
    steps: int = 60
    validate_every: int = 5
    tuning_seeds: str = "1001..1004"
    seeds: str = "1..16"
    correction: str = "Holm's method over all differences of the study"

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names) and {self.baseline, *map(self.other, self.arms)} <= {*names}, names
        assert self.rates or all(arm.rate is not None for arm in self.arms), "arms without a rate need rates to try"

    def other(self, arm: Arm) -> str:
        """The name of the arm that ``arm`` is compared with; its own for a baseline."""
        return arm.against or self.baseline

    def arms_of(self, task: str) -> list[Arm]:
        return [arm for arm in self.arms if not arm.tasks or task in arm.tasks]

    def words(self, arm: Arm, task: str, rate: float) -> list[str]:
        """The words of ``verl-gsd lab train`` for one arm."""
        return [
            *arm.words,
            f"task={task}",
            f"{RATE}={rate:.3g}",
            f"trainer.total_training_steps={arm.steps or self.steps}",
            f"trainer.test_freq={self.validate_every}",
        ]
