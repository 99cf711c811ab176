"""Shows the steps of a training run: one line per step in a log, a progress bar in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from verl_gsd.rundir import GENERATED_REWARD, HELD_OUT, TRAINED


class StepDisplay:
    """A context that shows steps while a run trains.

    In a terminal, a bar shows the latest step with the elapsed and the remaining time, and only steps with held-out
    accuracies get a line. Elsewhere, every step gets a line.

    Args:
        total: the last step, if it is known.
        console: the console to print to.
        score_note: printed after each reward and accuracy, for scores that are not those of the reward function.
    """

    def __init__(self, total: int | None, console: Console, score_note: str = "") -> None:
        self._console, self.total, self._score_note = console, total, score_note
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=math.inf,  # a step can take longer than rich's default of 30 s
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> StepDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def set_total(self, total: int) -> None:
        """Set the last step, which the trainer knows once it has read the data."""
        self.total = total
        self._bar.update(self._task, total=total)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of ``step``: of a training step, or of the validation before the first one."""
        held_out, parts = (
            [f"{text}{self._score_note}" for text in texts] for texts in (accuracies(metrics), _rewards(metrics))
        )
        if "timing_s/step" in metrics:
            parts.append(f"{metrics['timing_s/step']:.1f} s")
        if self._bar.disable or held_out:
            text = f"step {step:>4}/{self.total or '?'}  " + "  ".join(parts + held_out)
            self._console.print(text, markup=False, highlight=False)
        description = "  ".join(["training", *parts]) if TRAINED in metrics else "training"
        self._bar.update(self._task, completed=step, description=description)


def _rewards(metrics: Mapping[str, float]) -> list[str]:
    """The mean reward of the batch trained on, and that of all generated responses if the two differ."""
    if "critic/score/mean" not in metrics:
        return []
    text = f"reward {metrics['critic/score/mean']:.3f}"
    if GENERATED_REWARD in metrics:
        text += f" ({metrics[GENERATED_REWARD]:.3f} of all generated responses)"
    return [text]


def accuracies(metrics: Mapping[str, float]) -> list[str]:
    """The held-out accuracies in the metrics of a step, as texts; mean rewards where there are no accuracies."""
    matches = ((HELD_OUT.fullmatch(name), value) for name, value in metrics.items())
    return [
        f"held-out {match['source']} {'reward ' if match['figure'] == 'reward' else ''}{value:.3f}"
        for match, value in matches
        if match
    ]
