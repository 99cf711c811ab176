"""What a study states before it runs: question, hypothesis with its source, measure, arms, tasks, rates and seeds."""

from __future__ import annotations

from dataclasses import dataclass

from verl_gsd.lab.training.seeds import parse_seeds

RATE = "actor_rollout_ref.actor.optim.lr"


@dataclass(frozen=True)
class Tuned:
    """A learning rate that another arm has.

    Attributes:
        study: the study that tunes it.
        arm: the arm that is tuned.
        times: factor on its rate.
    """

    study: str
    arm: str
    times: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: without spaces; names the folder of its runs. No two arms of a task have the same.
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
        name: of its file and of the folder of its runs.
        hypothesis: what is expected, with its source.
        measure: what decides, in words. ``analysis.py`` computes it.
        spread: the pilot's spread over seeds, and the number of seeds that follows from it.
        tuning: how learning rates are chosen; empty if all are given.
        baseline: the arm that the others are compared with. Its runs set the budget of tokens.
        rates: the learning rates tried first for each arm without one, increasing. While the best one is the lowest or
            the highest tried, ``runs.py`` also tries the next one by a factor of 2.
        steps, validate_every: training steps, and steps between two validations.
        tuning_seeds, seeds: in the notation of ``--seeds``. They have no seed in common.
        correction: for multiple tests.
        judges: whether runs ask the judges of ``judge_server``, so that the server has to run beside them.
        curves: whether the page shows accuracy, entropy, length and gradient norm over the steps of each run.

    Raises:
        ValueError: arms of a task have the same name, an arm is compared with one that does not exist, rates are
            missing or do not increase, or a seed is used for both purposes.
    """

    name: str
    question: str
    hypothesis: str
    measure: str
    spread: str
    tasks: tuple[str, ...]
    baseline: str
    arms: tuple[Arm, ...]
    tuning: str = ""
    rates: tuple[float, ...] = ()
    steps: int = 60
    validate_every: int = 5
    tuning_seeds: str = "1001..1002"
    seeds: str = "1..16"
    correction: str = "Holm's method over all differences of the study"
    judges: bool = False
    curves: bool = False

    def __post_init__(self) -> None:
        for task in self.tasks:
            names = [arm.name for arm in self.arms_of(task)]
            if len(set(names)) < len(names):
                raise ValueError(f"{self.name}: arms of {task} need different names, got {names}")
        if unknown := {self.baseline, *map(self.other, self.arms)} - {arm.name for arm in self.arms}:
            raise ValueError(f"{self.name}: arms are compared with {sorted(unknown)}, which are no arms of the study")
        if any(arm.rate is None for arm in self.arms) and not self.rates:
            raise ValueError(f"{self.name}: arms without a learning rate need rates to try")
        if list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"{self.name}: rates must increase, got {self.rates}")
        if both := set(parse_seeds(self.seeds)) & set(parse_seeds(self.tuning_seeds)):
            raise ValueError(f"{self.name}: seeds {sorted(both)} are for tuning and for comparing. Use different ones")

    def other(self, arm: Arm) -> str:
        """The name of the arm that ``arm`` is compared with; its own for a baseline."""
        return arm.against or self.baseline

    def arms_of(self, task: str) -> list[Arm]:
        return [arm for arm in self.arms if not arm.tasks or task in arm.tasks]

    def words(self, arm: Arm, task: str, rate: float) -> tuple[str, ...]:
        """The words of ``verl-gsd lab train`` for one arm."""
        return (
            *arm.words,
            f"task={task}",
            f"{RATE}={rate:.3g}",
            f"trainer.total_training_steps={arm.steps or self.steps}",
            f"trainer.test_freq={self.validate_every}",
        )
