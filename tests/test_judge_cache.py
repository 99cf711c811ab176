"""The file of scores: shared, bounded, never in the way, and trusted no further than a number."""

import logging
import sqlite3
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from verl_gsd.judge import cache as cache_module
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.scorer import Question

WHO = "openai model=judge-7b"


def question(response="It is 42.", problem="6 times 7?", reference="42"):
    return Question(problem, reference, response)


def noise(number, length):
    """Text that cannot be compressed below three quarters of its length."""
    return np.random.default_rng(number).bytes(length // 2).hex()[:length]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "scores.sqlite"


def changed(path, statement, *values):
    """Do something to the file that a cache would not."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def count(path):
    connection = sqlite3.connect(path)
    (rows,) = connection.execute("SELECT count(*) FROM judgement").fetchone()
    connection.close()
    return rows


def test_a_score_is_found_again_by_all_it_depends_on(path):
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) is None
        cache.put(WHO, question(), 7)
        assert cache.get(WHO, question()) == 7.0
        for other in (question("x"), question(problem="x"), question(reference="")):
            assert cache.get(WHO, other) is None
        assert cache.get(WHO + "2", question()) is None
        cache.put(WHO, question(), -0.25)  # a scorer need not have the scale of words
        assert cache.get(WHO, question()) == -0.25


def test_where_a_text_ends_counts(path):
    with ScoreCache(path) as cache:
        cache.put("a", Question("b", "c", "d"), 1)
        for identity, *texts in (
            ("ab", "", "c", "d"),
            ("a", "bc", "", "d"),
            ("", "ab", "c", "d"),
            ("a", "b", "cd", ""),
        ):
            assert cache.get(identity, Question(*texts)) is None


def test_scores_outlive_the_process(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 3)
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) == 3.0
        assert [row.score for row in cache.rows()] == [3.0]


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfff\x00b", "", "\x00", "日本語 𝕏", "x" * 3_000_000, "'; DROP TABLE judgement;--"]
)
def test_any_text_is_kept_as_it_is(path, text):
    with ScoreCache(path) as cache:
        cache.put(text, Question(text, text, text), 5)
        assert cache.get(text, Question(text, text, text)) == 5.0
        (row,) = cache.rows()
    assert (row.identity, row.question, row.score) == (text, Question(text, text, text), 5.0)


def test_rows_come_in_the_order_they_were_stored_while_others_write(path):
    with ScoreCache(path) as cache, ScoreCache(path) as other:
        for number in range(5):
            cache.put(WHO, question(str(number)), number)
        rows = cache.rows()
        assert next(rows).question.response == "0"
        other.put(WHO, question("5"), 5)
        assert [row.score for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_score_is_not_stored(path, score):
    with ScoreCache(path) as cache:
        with pytest.raises(ValueError, match="not finite"):
            cache.put(WHO, question(), score)
        assert cache.get(WHO, question()) is None


WRITER = """
import sys
from pathlib import Path
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.scorer import Question

path, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with ScoreCache(Path(path)) as cache:
    for number in range(200):
        cache.put("both", Question("p", "", str(number)), number)
        cache.put(name, Question("p", "", str(number)), number)
        assert cache.get(name, Question("p", "", str(number))) == number
"""


def test_processes_make_and_write_one_file_at_once(path, caplog):
    names = ["first", "second", "third"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE,
        )
        for name in names
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    with ScoreCache(path) as cache:
        for name in ["both", *names]:
            assert [cache.get(name, Question("p", "", str(number))) for number in range(200)] == list(range(200))


def test_threads_share_one_cache(path):
    errors = []

    def work(name):
        try:
            for number in range(100):
                cache.put(name, question(str(number)), number)
                assert cache.get(name, question(str(number))) == number
        except Exception as error:
            errors.append(error)

    with ScoreCache(path) as cache:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and len(list(cache.rows())) == 400


def test_the_file_stays_within_its_limit_and_keeps_what_was_used_last(path):
    with ScoreCache(path, limit_mb=1) as cache:
        for number in range(100):
            cache.put(WHO, question(noise(number, 60_000)), number)
            assert cache.get(WHO, question(noise(0, 60_000))) == 0.0  # used all the time
    assert path.stat().st_size <= 1.1 * 2**20
    with ScoreCache(path, limit_mb=1) as cache:
        kept = [number for number in range(100) if cache.get(WHO, question(noise(number, 60_000))) is not None]
    assert kept[0] == 0 and len(kept) > 20 and kept[1:] == list(range(101 - len(kept), 100))


def test_use_is_remembered_over_a_restart(path):
    with ScoreCache(path, limit_mb=1) as cache:
        for number in range(20):
            cache.put(WHO, question(noise(number, 60_000)), number)
    with ScoreCache(path, limit_mb=1) as cache:
        assert cache.get(WHO, question(noise(0, 60_000))) == 0.0
    with ScoreCache(path, limit_mb=1) as cache:
        for number in range(20, 40):
            cache.put(WHO, question(noise(number, 60_000)), number)
        assert cache.get(WHO, question(noise(0, 60_000))) == 0.0
        assert cache.get(WHO, question(noise(1, 60_000))) is None


def test_a_smaller_limit_holds_from_the_next_score_on(path):
    with ScoreCache(path, limit_mb=8) as cache:
        for number in range(100):
            cache.put(WHO, question(noise(number, 60_000)), number)
    before = count(path)
    with ScoreCache(path, limit_mb=1) as cache:
        cache.put(WHO, question(), 1)
    assert count(path) < before / 2


def test_a_judgement_that_would_drive_out_the_others_is_not_stored(path):
    with ScoreCache(path, limit_mb=1) as cache:
        cache.put(WHO, question(), 1)
        cache.put(WHO, question(noise(1, 5_000_000)), 2)
        assert [row.score for row in cache.rows()] == [1.0]


def test_a_limit_is_positive(path):
    with pytest.raises(ValueError, match="limit_mb=0"):
        ScoreCache(path, limit_mb=0)


def test_a_file_of_something_else_is_named_and_left_alone(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(ValueError, match=r"scores\.sqlite.*delete it, or name another"):
        ScoreCache(path)
    assert path.read_bytes() == b"not a database at all" * 1000
    path.unlink()
    changed(path, "CREATE TABLE judgement (key, score, used, texts)")
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"scores\.sqlite: is no cache of judgements of version 1; delete it, or name"):
        ScoreCache(path)
    assert path.read_bytes() == content


def test_a_file_of_another_version_is_named(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 1)
    changed(path, "PRAGMA user_version = 2")
    with pytest.raises(ValueError, match=r"scores\.sqlite.*version 1"):
        ScoreCache(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be used"):
        ScoreCache(tmp_path)


def test_a_file_cut_short_is_no_error_of_the_run(path, caplog):
    with ScoreCache(path) as cache:
        for number in range(50):
            cache.put(WHO, question(noise(number, 60_000)), number)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    try:
        with ScoreCache(path) as cache:
            found = {cache.get(WHO, question(noise(number, 60_000))) for number in range(50)}
            cache.put(WHO, question(), 1)
            list(cache.rows())
    except ValueError as error:
        assert "scores.sqlite" in str(error)
    else:
        assert found <= {None, *range(50)}


@pytest.mark.parametrize("score", ["10", "1e1", b"10", b"\x00" * 8, "abc", 9e999, -9e999, b"\xff", 10, "x" * 1_000_000])
def test_a_score_of_a_forged_file_is_a_finite_number_or_none(path, score):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
    changed(path, "PRAGMA ignore_check_constraints = ON")
    changed(path, "UPDATE judgement SET score = ?", score)
    kept = isinstance(score, int) or score in ("10", "1e1")  # SQLite itself makes numbers of these
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) == (10.0 if kept else None)
        assert len(list(cache.rows())) == kept
    assert count(path) == kept
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 8)
        assert cache.get(WHO, question()) == 8.0


def test_a_score_of_a_forged_table_without_types_is_none(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
    changed(path, "ALTER TABLE judgement RENAME TO old")
    changed(path, "CREATE TABLE judgement (key, score, used, texts)")
    changed(path, "INSERT INTO judgement SELECT key, '10', used, texts FROM old")
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) is None


FORGED = [b'["a", "b", "c", "d"]', b'["a", "b", "c", 4]', b'["a"]', b"[]", b"4", b"junk", b"[" * 10**6, b'{"a": 1}']


@pytest.mark.parametrize("texts", [*map(zlib.compress, FORGED), b"junk", b"", "text", 7])
def test_texts_that_do_not_belong_to_their_key_are_left_out(path, texts):
    with ScoreCache(path) as cache:
        cache.put(WHO, question("first"), 1)
        cache.put(WHO, question("second"), 2)
    changed(path, "UPDATE judgement SET texts = ? WHERE score = 1", texts)
    with ScoreCache(path) as cache:
        assert [row.score for row in cache.rows()] == [2.0]


def test_texts_made_to_fill_the_memory_are_unpacked_to_a_bound(path, monkeypatch):
    monkeypatch.setattr(cache_module, "_LARGEST", 1000)
    with ScoreCache(path) as cache:
        cache.put(WHO, question("x" * 2000), 1)
        cache.put(WHO, question(), 2)
        assert [row.score for row in cache.rows()] == [2.0]
        assert cache.get(WHO, question("x" * 2000)) == 1.0


def test_a_full_disk_is_told_once_and_stops_nobody(path, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cache_module, "monotonic", lambda: now[0])
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 1)
        pages = cache._writer.execute("PRAGMA page_count").fetchone()[0]
        cache._writer.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(3):
            cache.put(WHO, question(noise(number, 60_000)), 2)
            now[0] += 61
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "scores.sqlite" in caplog.text and noise(0, 60_000)[:40] not in caplog.text
        cache._writer.execute("PRAGMA max_page_count = 1000000")
        assert cache.get(WHO, question()) == 1.0
        cache.put(WHO, question("there is room again"), 3)
        assert cache.get(WHO, question("there is room again")) == 3.0


def test_a_lock_that_stays_is_waited_for_once_a_minute(path, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cache_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(cache_module, "_BUSY_S", 0.0)
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        cache.put(WHO, question("while locked"), 2)
        assert cache.get(WHO, question()) == 1.0  # who reads waits for no writer
        other.execute("ROLLBACK")
        other.close()
        cache.put(WHO, question("within the minute"), 3)
        now[0] += 61
        cache.put(WHO, question("after it"), 4)
        assert [row.score for row in cache.rows()] == [1.0, 4.0]
    assert len(caplog.records) == 1


def test_reading_writes_nothing(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 1)
        changes = cache._writer.total_changes
        for _ in range(100):
            cache.get(WHO, question())
            cache.get(WHO, question("unknown"))
        assert (cache._writer.total_changes, cache._reader.total_changes) == (changes, 0)


def test_a_closed_cache_that_is_asked_is_a_bug(path):
    cache = ScoreCache(path)
    cache.close()
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get(WHO, question())
    with pytest.raises(sqlite3.ProgrammingError):
        cache.put(WHO, question(), 1)
