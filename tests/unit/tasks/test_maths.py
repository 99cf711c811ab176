"""The verifier for mathematics, called from threads and on hostile text."""

import subprocess
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from verl_gsd.tasks import maths
from verl_gsd.tasks.maths_worker import LEAST_S, current_limit_s


def score(answer, truth):
    return maths.compute_score("math", rf"It is \boxed{{1}}, no: \boxed{{{answer}}}.", truth)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} } end", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x", None),
        ("the answer is 3", None),
        ("", None),
        (r"\boxed{" + "9" * 2000 + "}", None),
        (r"\boxed{}", ""),
        (r"$\boxed{1}$, so there are $\boxed 2$ of them.", "2"),
        (r"we get \boxed 9.", "9"),
        (r"\boxed {7} and \boxedly{8}", "7"),
        (r"\fbox{12}", "12"),
        (r"\boxed{\{x : x > 1}", r"\{x : x > 1"),
        (r"\boxed{1\\}", r"1\\"),
        (r"\boxed{\begin{array}{c}1\\{2}\end{array}}", r"\begin{array}{c}1\\{2}\end{array}"),
    ],
)
def test_the_last_box_is_the_answer(text, found):
    assert maths.last_boxed(text) == found


RIGHT = [
    (r"\frac{1}{2}", "0.5"),
    ("x=5", "5"),
    ("10,000", "10000"),
    (r"\{2,1\}", r"\{1,2\}"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
]
WRONG = [("2", "3"), ("(2,1)", "(1,2)"), (r"\text{none}", "3"), ("x+1", "x"), ("", "3"), ("3.1416", r"\pi")]


def test_answers_are_compared_as_mathematics_from_any_thread(monkeypatch):
    """verl calls verifiers from threads, where math-verify's own time-outs raise or return nothing (verl#3407)."""
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    with ThreadPoolExecutor(8) as threads:
        right = list(threads.map(lambda pair: score(*pair), RIGHT * 3))
        wrong = list(threads.map(lambda pair: score(*pair), WRONG * 3))
    verdict = {"score": 1.0, "acc": 1.0, "unverified": 0.0, "doubtful": 0.0}
    assert right == [verdict | {"answer": maths.normalize_latex(truth.strip())} for _, truth in RIGHT * 3]
    verdict = {"score": 0.0, "acc": 0.0, "unverified": 0.0}
    assert wrong == [
        verdict | {"answer": maths.normalize_latex(answer.strip()), "doubtful": float("none" in answer)}
        for answer, _ in WRONG * 3
    ]
    assert maths._idle.qsize() == maths.PROCESSES, "all were given back"


@pytest.mark.parametrize("solution", [None, 3, "no box", r"\boxed{" + "(" * 5000 + "}", r"\boxed{__import__('os')}"])
def test_a_response_without_an_answer_is_wrong(solution):
    verdict = maths.compute_score("math", solution, "3")
    assert verdict.pop("answer") in ("", "nobox", "no box", "__import__('os')")
    assert verdict.pop("doubtful") == float("import" in str(solution))
    assert verdict == {"score": 0.0, "acc": 0.0, "unverified": 0.0}


def test_equal_texts_and_plain_answers_need_no_process(monkeypatch):
    monkeypatch.setattr(maths, "_reply", lambda *_: pytest.fail("asked"))
    assert score("9^{9^{9^{9}}}", " 9^{9^{9^{9}}} ")["score"] == 1.0
    assert score("1,000", "1000")["score"] == score(r"50\%", "0.5")["score"] == 1.0
    assert score(r"(0,1]", "(0,2]") == {"score": 0.0, "acc": 0.0, "unverified": 0.0, "doubtful": 0.0, "answer": "(0,1]"}


def test_a_response_without_a_box_is_right_if_it_announces_the_answer():
    assert maths.compute_score("math", r"The answer is $x=\frac{1}{2}$.", "0.5")["score"] == 1.0
    assert maths.compute_score("math", "6 + 6 = 12\n#### 12", "12")["score"] == 1.0
    assert maths.compute_score("math", "6 + 6 are twelve, which is 12 = 12", "12")["score"] == 0.0


@pytest.fixture
def pool(monkeypatch):
    """The replies of the comparison processes in this test, and the processes it starts. The cache starts empty."""
    monkeypatch.setattr(maths, "_verdicts", OrderedDict())
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    words, started, ask, start = [], [], maths._Worker.ask, maths._Worker.__init__
    monkeypatch.setattr(maths._Worker, "ask", lambda *args: words.append(ask(*args)) or words[-1])
    monkeypatch.setattr(maths._Worker, "__init__", lambda self: started.append(self) or start(self))
    return SimpleNamespace(words=words, started=started)


def the_next_worker():
    worker = maths._idle.get()
    maths._idle.put(worker)
    return psutil.Process(worker._process.pid)


#: Numbers that no power or factorial shows.
ENDLESS = [rf"9^{{(9^{{(9+{number})}})}}" for number in range(2)]


def test_hostile_answers_cost_a_bounded_time_and_no_process(pool):
    """Most of the 200 answers are not compared. A fork gives up once on each of the others."""
    assert score("6/2+0", r"\sqrt{9}")["score"] == 1.0
    process = the_next_worker()
    towers = [f"9^{{9^{{9^{{{number}}}}}}}" for number in range(60, 110)]
    powers = [f"x^{{{10**6 + number}}}" for number in range(50)]
    factorials = [f"{99999 + number}!" for number in range(50)]
    asked = [*towers, *powers, *factorials, *ENDLESS * 25]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda answer: score(answer, r"\sqrt{2}"), asked))
    assert [verdict.pop("answer") for verdict in found] == [maths.normalize_latex(answer) for answer in asked]
    assert found == [{"score": 0.0, "acc": 0.0, "unverified": 1.0, "doubtful": 0.0}] * 200
    assert pool.words == ["right"] + ["late"] * len(ENDLESS)
    assert score(r"\frac{2}{\sqrt{2}}", r"\sqrt{2}")["score"] == 1.0
    assert process.is_running() and len(pool.started) <= maths.PROCESSES


def test_a_group_of_equal_answers_costs_one_comparison(pool):
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda _: score("6/2+0", r"\sqrt{9}"), range(8)))
    assert verdicts == [{"score": 1.0, "acc": 1.0, "unverified": 0.0, "doubtful": 0.0, "answer": r"\sqrt{9}"}] * 8
    assert pool.words == ["right"]


def test_the_cache_of_verdicts_is_bounded(monkeypatch, pool):
    monkeypatch.setattr(maths, "REMEMBERED", 2)
    for answer in ("x+1", "x+2", "x+1", "x+3", "x+1", "x+2"):
        assert score(answer, "x")["score"] == 0.0
    assert len(pool.words) == 4, "the second x+2 was forgotten, x+1 was not"


def test_the_cpu_limit_shrinks_but_never_reaches_zero():
    assert [current_limit_s(2.0, late) for late in (0, 1, 3, 100)] == [2.0, 1.0, 0.5, LEAST_S]
    assert current_limit_s(0.1, 0) == current_limit_s(0.1, 9) == 0.1


def test_a_comparison_whose_fork_ended_is_repeated_the_next_time(pool):
    """The pair may not be the cause: memory may have been short, for example."""
    assert score("6/2+0", "3")["score"] == 1.0
    process = the_next_worker()
    (fork,) = process.children()
    fork.kill()
    assert score("6/2-0", "3") == {"score": 0.0, "acc": 0.0, "unverified": 1.0, "doubtful": 0.0, "answer": "6/2-0"}
    assert score("6/2-0", "3")["score"] == 1.0
    assert pool.words == ["right", "lost", "right"] and process == the_next_worker()


def test_a_silent_process_is_killed_and_replaced(monkeypatch, pool):
    assert score("6/2+0", "3")["score"] == 1.0
    process = the_next_worker()
    (fork,) = process.children()
    fork.suspend()
    monkeypatch.setattr(maths, "TIMEOUT_S", 0.5)
    assert score("6/2-0", "3") == {"score": 0.0, "acc": 0.0, "unverified": 1.0, "doubtful": 0.0, "answer": "6/2-0"}
    fork.resume()
    fork.wait(60)  # nobody asks it any more
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    assert score("6/2-0+0", "3")["score"] == 1.0
    assert pool.words == ["right", "stuck", "right"] and not process.is_running()


def test_a_worker_that_died_is_replaced(pool):
    assert score("6/2+0", "3")["score"] == 1.0
    process = the_next_worker()
    process.kill()
    process.wait()
    assert score("6/2-0", "3")["unverified"] == 1.0
    assert score("6/2-0", "3")["score"] == 1.0


def test_a_process_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="math-verify"):
        maths._Worker()


def test_comparison_processes_end_with_their_parent():
    code = (
        "from verl_gsd.tasks import maths; maths.compute_score('m', r'\\boxed{6/2+0}', '3');"
        "import psutil; print(*[child.pid for child in psutil.Process().children()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (worker,) = map(int, done.stdout.split())
    with suppress(psutil.NoSuchProcess):
        psutil.Process(worker).wait(60)  # raises if it goes on
