"""Excerpts of a log: the lines of a process, cut and without colors, from logs of any size."""

import pytest

from verl_gsd.run import run_log
from verl_gsd.run.run_log import first_exception, last_lines, last_lines_of

# As Ray 2.60 and vLLM 0.24 print them.
CYAN, END, GREEN = "\x1b[36m", "\x1b[0m", "\x1b[32m"
SERVER = f"{CYAN}(vLLMHttpServer pid=9390){END} "
LINES = [
    f"{CYAN}(pid=14556){END} WARNING 11-28 08:12:36 [importing.py:65] Triton is installed.{GREEN} [repeated 2x across "
    "cluster] (Ray deduplicates logs by default. Set RAY_DEDUP_LOGS=0 to disable log deduplication, or see https://x)"
    f"{END}",
    f"{SERVER}INFO: ready",
    f"{SERVER}(EngineCore pid=9433) ERROR 11-28 09:00:38 [core.py:1] CUDA out of memory",
    f"{CYAN}(WorkerDict pid=7, ip=10.0.0.2){END} loss\x07 {{'a': 1}}",
    f"{CYAN}(AgentLoopWorkerTQ pid=93901){END} another process, whose number begins alike",
    f"{CYAN}(TaskRunnerV1 pid=1){END} it mentions (Worker pid=9390) and is not it",
    "a line without a prefix",
]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "attempt_1.log"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.mark.parametrize(
    ("pid", "expected"),
    [
        (9390, ["INFO: ready", "ERROR 11-28 09:00:38 [core.py:1] CUDA out of memory"]),
        (9433, ["ERROR 11-28 09:00:38 [core.py:1] CUDA out of memory"]),
        (7, ["loss {'a': 1}"]),
        (14556, ["WARNING 11-28 08:12:36 [importing.py:65] Triton is installed. [repeated 2x across cluster]"]),
        (939, []),
    ],
)
def test_lines_of_a_process_include_those_of_its_children(log, pid, expected):
    assert last_lines_of(log, pid, 15) == expected


def test_last_lines_are_limited_and_in_order(log):
    assert last_lines_of(log, 9390, 1) == ["ERROR 11-28 09:00:38 [core.py:1] CUDA out of memory"]
    assert last_lines(log, 2) == [
        "(TaskRunnerV1 pid=1) it mentions (Worker pid=9390) and is not it",
        "a line without a prefix",
    ]


def test_a_line_of_metrics_is_cut(log):
    with log.open("a") as file:
        file.write(f"{CYAN}(TaskRunnerV1 pid=1){END} step:1 - " + "actor/loss:0.123 - " * 300 + "\n")
    (line,) = last_lines(log, 1)
    assert line.startswith("(TaskRunnerV1 pid=1) step:1") and len(line) < 340 and line.endswith("more characters]")
    (line,) = last_lines_of(log, 1, 1)
    assert line.startswith("step:1 - actor/loss") and len(line) < 340


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_lines_are_complete_across_block_boundaries(log, monkeypatch, block):
    whole = last_lines(log, 100)
    assert len(whole) == len(LINES)
    monkeypatch.setattr(run_log, "_BLOCK", block)
    assert last_lines(log, 100) == whole


def test_only_the_end_of_a_large_log_is_read(tmp_path):
    """A hole of 100 GB that takes no room on the disk: reading it would take minutes."""
    path = tmp_path / "attempt_1.log"
    with path.open("wb") as file:
        file.seek(100 << 30)
        file.write("\n".join(["", *LINES]).encode())
    assert last_lines(path, 1) == ["a line without a prefix"]
    assert len(last_lines_of(path, 9390, 2)) == 2


def test_a_progress_bar_is_shown_as_a_terminal_shows_it(tmp_path):
    path = tmp_path / "attempt_1.log"
    path.write_bytes(b"\r10%|#\r\x1b[K20%|##\r\n\xff\n")
    assert last_lines(path, 5) == ["20%|##", "\ufffd"]


def test_first_exception_is_found_but_not_similar_words(tmp_path):
    path = tmp_path / "attempt_1.log"
    path.write_text("")
    assert first_exception(path) is None and last_lines(path, 5) == []
    path.write_text(
        "Error: no name\nan Exception: none\n" + "x" * 100_000 + f"\n{SERVER}KeyError: 'acc'\nValueError: 2"
    )
    assert first_exception(path) == "(vLLMHttpServer pid=9390) KeyError: 'acc'"


def test_the_exception_that_ended_a_run_is_not_one_that_it_survived(tmp_path):
    path = tmp_path / "log"
    survived = "ValueError: survived\nverl-gsd: warning: a reward failed\nverl-gsd: KeyError: 'x'\n"
    path.write_text(
        f"{survived}step:1 - loss:0.1\nverl-gsd: KeyError: 'y'\n(W pid=1) OSError: ended it\nRayError: last\n"
    )
    assert first_exception(path) == "(W pid=1) OSError: ended it"
    path.write_text(f"{survived}step:1 - loss:0.1\nnothing more\n")
    assert first_exception(path) == "ValueError: survived"


def test_lines_similar_to_exceptions_are_read_at_most_twice(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("x Error: not found\n" * 3000)
    looked, original = [], run_log._readable
    monkeypatch.setattr(run_log, "_readable", lambda line: looked.append(line) or original(line))
    assert first_exception(path) is None and 0 < len(looked) <= 6000
