"""When a run that makes no progress counts as stuck."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.trainer.progress import FACTOR, FIRST, LEAST, STARTING, WAITING, Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_phase_that_has_never_ended_may_be_quiet_for_an_hour(clock):
    progress = Progress(clock=clock)
    clock.now += 50
    assert progress.quiet() == (50, FIRST, STARTING)
    progress.begin("saving a checkpoint")
    assert progress.quiet() == (0, FIRST, "saving a checkpoint")


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=8))
def test_a_phase_may_be_quiet_for_ten_times_its_longest_quiet_time_so_far(seconds):
    clock = Clock()
    progress = Progress(clock=clock)
    for spent in seconds:
        progress.begin("updating")
        clock.now += spent
        progress.begin("saving")
        clock.now += 3 * spent  # of another phase, which does not count
    progress.begin("updating")
    assert progress.quiet()[1] == pytest.approx(max(LEAST, FACTOR * max(seconds)))


def test_every_finished_response_is_progress(clock):
    progress = Progress(clock=clock)
    progress.begin(WAITING)
    for finished in range(1, 4):
        clock.now += 100
        progress.look(f"{finished} responses", finished)
        assert progress.quiet() == (0, FIRST, f"{WAITING} ({finished} responses)")
    clock.now += 30
    progress.look("3 responses", 3)
    assert progress.quiet()[0] == 30
    progress.begin("updating")
    progress.begin(WAITING)
    assert progress.quiet()[1] == FACTOR * 100


def test_the_same_state_in_different_steps_is_progress(clock):
    progress = Progress(clock=clock)
    progress.begin(WAITING)
    progress.look("0", 0)
    clock.now += 5
    progress.begin("updating")
    clock.now += 5
    progress.begin(WAITING)
    progress.look("0", 0)
    assert progress.quiet()[0] == 0


def test_the_users_limit_applies_to_every_phase_except_the_start(clock):
    progress = Progress(7.0, clock=clock)
    assert progress.quiet()[1] == FIRST
    for phase in ("updating", "saving", "updating"):
        progress.begin(phase)
        assert progress.quiet()[1] == 7.0
        clock.now += 1000


def test_time_in_which_the_process_was_suspended_does_not_count(clock):
    progress = Progress(clock=clock)
    clock.now += 1000
    progress.excuse(990)
    assert progress.quiet()[0] == 10


def test_the_first_pass_over_many_tokens_may_take_longer(clock):
    """An update of 512 x 16 responses with 8,000 tokens on 8 GPUs takes about 4,000 s with 7e9 parameters."""
    progress = Progress(clock=clock)
    progress.begin("updating", 512 * 16 * 8000 / 8)
    assert progress.quiet()[1] > 10 * 4000
    clock.now += 4000
    progress.begin("saving")
    assert progress.quiet()[1] == FIRST
    progress.begin("updating", 1e9)
    assert progress.quiet()[1] == FACTOR * 4000, "then the run itself tells how long it takes"
    fixed = Progress(7.0, clock=clock)
    fixed.begin("updating", 1e9)
    assert fixed.quiet()[1] == 7.0


def test_the_limit_is_never_below_least(clock):
    progress = Progress(least=2 * FIRST, clock=clock)
    assert progress.quiet()[1] == 2 * FIRST
    progress.begin(STARTING)
    assert progress.quiet()[1] == 2 * FIRST
