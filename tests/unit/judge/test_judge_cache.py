"""The score cache: shared by processes, limited in size, tolerant of disk errors, safe against forged files."""

import logging
import os
import re
import sqlite3
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest

from verl_gsd.algorithms.dagrpo.checks import check_dagrpo
from verl_gsd.judge import cache as cache_module
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.disks import journal_mode, mounts
from verl_gsd.judge.openai_scorer import OpenAIScorer
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
    """Execute a statement on the file without ScoreCache."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def looked_up(path, statement):
    connection = sqlite3.connect(path)
    (value,) = connection.execute(statement).fetchone()
    connection.close()
    return value


def count(path):
    return looked_up(path, "SELECT count(*) FROM judgement")


def test_a_score_is_found_by_identity_problem_reference_and_response(path):
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) is None
        cache.put(WHO, question(), 7)
        assert cache.get(WHO, question()) == 7.0
        for other in (question("x"), question(problem="x"), question(reference="")):
            assert cache.get(WHO, other) is None
        assert cache.get(WHO + "2", question()) is None
        cache.put(WHO, question(), -0.25)  # a scorer need not have the scale of words
        assert cache.get(WHO, question()) == -0.25


def test_the_key_depends_on_where_each_text_ends(path):
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
def test_any_text_is_stored_unchanged(path, text):
    with ScoreCache(path) as cache:
        cache.put(text, Question(text, text, text), 5)
        assert cache.get(text, Question(text, text, text)) == 5.0
        (row,) = cache.rows()
    assert (row.identity, row.question, row.score) == (text, Question(text, text, text), 5.0)


def test_rows_are_in_insertion_order_while_others_write(path):
    with ScoreCache(path) as cache, ScoreCache(path) as other:
        for number in range(5):
            cache.put(WHO, question(str(number)), number)
        rows = cache.rows()
        assert next(rows).question.response == "0"
        other.put(WHO, question("5"), 5)
        assert [row.score for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_rejected(path, score):
    with ScoreCache(path) as cache:
        with pytest.raises(ValueError, match="score"):
            cache.put(WHO, question(), score)
        assert cache.get(WHO, question()) is None


#: /proc/mounts recorded on a compute node, with other names. \\040 is a space in a folder's name.
MOUNTS = """\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/dev/nvme0n1p2 / ext4 rw,relatime 0 0
systemd-1 /home autofs rw,relatime,fd=51,pgrp=1,timeout=0,minproto=5,maxproto=5,direct 0 0
filer:/home /home nfs4 rw,relatime,vers=4.2,rsize=1048576,proto=tcp,sec=sys,local_lock=none,addr=10.0.0.2 0 0
tmpfs /home/local tmpfs rw,nosuid,nodev,size=24683656k 0 0
filer:/old /old nfs rw,relatime,vers=3,nolock,proto=tcp,local_lock=all,addr=10.0.0.2 0 0
mgs@o2ib:/scratch /scratch lustre rw,seclabel,flock,lazystatfs 0 0
mgs@o2ib:/flash /flash lustre rw,seclabel,localflock,lazystatfs 0 0
mgs@o2ib:/plain /plain lustre rw,seclabel,lazystatfs 0 0
beegfs_nodev /bee beegfs rw,relatime,cfgFile=/etc/beegfs/beegfs-client.conf 0 0
gpfs0 /gpfs/with\\040space gpfs rw,relatime 0 0
//filer/share /share cifs rw,relatime,vers=3.1.1,nobrl,cache=strict 0 0
me@host:/ /mnt/remote fuse.sshfs rw,nosuid,nodev,relatime 0 0
fuse-overlayfs /container fuse.fuse-overlayfs rw,nodev,noatime 0 0
/dev/sdb1 /media/stick fuseblk rw,relatime 0 0
"""


def record_mounts(folder, text, monkeypatch=None):
    """Make psutil read ``text`` instead of /proc/mounts."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/mounts").write_text(text)
    if monkeypatch is not None:
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder / "proc"))
    return folder / "proc"


@pytest.fixture
def nfs(path, tmp_path, monkeypatch):
    """Pretend that the folder of ``path`` is on NFS. Returns the folder that replaces /proc."""
    return record_mounts(
        tmp_path, f"/dev/sda / ext4 rw 0 0\nfiler:/ {path.parent} nfs4 rw,local_lock=none 0 0\n", monkeypatch
    )


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        ("/tmp/judge.sqlite", "wal"),
        ("/home/me/.cache/verl_gsd/judge.sqlite", "truncate"),
        ("/home/local/judge.sqlite", "wal"),
        ("/homes/judge.sqlite", "wal"),
        ("/scratch/me/judge.sqlite", "truncate"),
        ("/gpfs/with space/judge.sqlite", "truncate"),
        ("/container/judge.sqlite", "truncate"),
        ("/media/stick/judge.sqlite", "wal"),
    ],
)
def test_a_network_disk_gets_a_rollback_journal_and_a_local_disk_a_write_ahead_log(tmp_path, monkeypatch, place, mode):
    record_mounts(tmp_path, MOUNTS, monkeypatch)
    assert journal_mode(Path(place), mounts()) == mode


@pytest.mark.parametrize(
    ("place", "disk"),
    [
        ("/old/judge.sqlite", "/old is nfs with local_lock=all"),
        ("/flash/judge.sqlite", "/flash is lustre with localflock"),
        ("/plain/judge.sqlite", "/plain is lustre without flock"),
        ("/bee/me/judge.sqlite", "/bee is beegfs"),
        ("/share/judge.sqlite", "/share is cifs with nobrl"),
        ("/mnt/remote/judge.sqlite", "/mnt/remote is fuse.sshfs"),
    ],
)
def test_a_disk_with_locks_local_to_one_host_is_rejected_with_a_remedy(tmp_path, monkeypatch, place, disk):
    record_mounts(tmp_path, MOUNTS, monkeypatch)
    with pytest.raises(ValueError, match=rf"{disk}, .* /"):
        journal_mode(Path(place), mounts())


def test_a_cache_on_such_a_disk_is_rejected_before_the_file_is_created(path, tmp_path, monkeypatch):
    record_mounts(tmp_path, f"beegfs_nodev {tmp_path} beegfs rw 0 0\n", monkeypatch)
    with pytest.raises(ValueError, match=r"scores\.sqlite: .*beegfs"):
        ScoreCache(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("/bee/me/judge.sqlite", r"/bee is beegfs"),
        ("hdfs://namenode/judge.sqlite", "local file"),
        ("/home/me/judge.sqlite", None),
    ],
)
def test_the_config_check_rejects_such_a_disk(compose_fast, tmp_path, monkeypatch, cache, message):
    record_mounts(tmp_path, MOUNTS, monkeypatch)
    key = f"algorithm.gsd.dagrpo.judge.cache={cache}"
    problems = list(check_dagrpo(*compose_fast("algo=dagrpo", "task=arithmetic", "hardware=cpu", key)))
    if message is None:
        assert not [problem for problem in problems if "locks" in problem]
    else:
        assert [problem for problem in problems if re.search(f"{key}: .*{message}", problem)]


def test_a_write_ahead_log_is_converted_on_a_network_disk(path, nfs):
    """No shared-memory file remains."""
    path.parent.mkdir()
    with sqlite3.connect(path) as local:
        local.execute("PRAGMA journal_mode = WAL")
    local.close()
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
        assert cache.get(WHO, question()) == 7.0
        assert not [file for file in path.parent.iterdir() if file.name.endswith(("-wal", "-shm"))]
    assert path.read_bytes()[18:20] == bytes([1, 1]), "SQLite's mark of a rollback journal"


def test_a_file_that_another_process_has_open_with_a_write_ahead_log_is_rejected(path, monkeypatch, request):
    monkeypatch.setattr(cache_module, "_LOCK_TIMEOUT_S", 0.0)
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
        request.getfixturevalue("nfs")
        with pytest.raises(ValueError, match=r"scores\.sqlite: .*process"):
            ScoreCache(path)
        assert cache.get(WHO, question()) == 7.0


def test_a_wrong_index_gives_no_score_on_a_network_disk(path, nfs):
    """The state after a file server lost a lock: index and rows are from different moments."""
    with ScoreCache(path) as cache:
        cache.put(WHO, question("first"), 1)
        cache.put(WHO, question("second"), 2)
    with sqlite3.connect(path) as other:
        ((first,), (second,)) = other.execute("SELECT rowid FROM judgement ORDER BY rowid")
        (rows_page,) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'judgement'").fetchone()
        (size,) = other.execute("PRAGMA page_size").fetchone()
    other.close()
    content = bytearray(path.read_bytes())
    start = (rows_page - 1) * size + 8  # a leaf of two cells; behind its header lie their places, in the order of rows
    content[start : start + 4] = content[start + 2 : start + 4] + content[start : start + 2]
    for place, row in ((start, first), (start + 2, second)):
        cell = (rows_page - 1) * size + int.from_bytes(content[place : place + 2], "big")
        while content[cell] & 0x80:  # the length of the row
            cell += 1
        content[cell + 1] = row
    path.write_bytes(content)
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question("first")) is None and cache.get(WHO, question("second")) is None


WRITER = """
import sys
from pathlib import Path
import psutil
from verl_gsd.judge import cache as cache_module
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.scorer import Question

path, name, psutil.PROCFS_PATH, count = sys.argv[1:]
cache_module._LOCK_TIMEOUT_S = 600.0  # nobody gives up, however slow this machine is
print("ready", flush=True)
sys.stdin.readline()
with ScoreCache(Path(path)) as cache:
    assert Path(path + "-wal").exists() == (psutil.PROCFS_PATH == "/proc")
    for number in range(int(count)):
        cache.put("both", Question("p", "", str(number)), number)
        cache.put(name, Question("p", "", str(number)), number)
        assert cache.get(name, Question("p", "", str(number))) == number
"""


@pytest.mark.parametrize(("disk", "count"), [("local", 200), ("network", 40)])
def test_several_processes_create_and_write_one_file(path, disk, count, request):
    proc = request.getfixturevalue("nfs") if disk == "network" else "/proc"
    names = ["first", "second", "third"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(proc), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
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
            assert [cache.get(name, Question("p", "", str(number))) for number in range(count)] == list(range(count))
    assert looked_up(path, "PRAGMA integrity_check") == "ok"


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


def test_the_file_stays_within_its_limit_and_keeps_recently_used_scores(path):
    with ScoreCache(path, limit_mb=1) as cache:
        for number in range(100):
            cache.put(WHO, question(noise(number, 60_000)), number)
            assert cache.get(WHO, question(noise(0, 60_000))) == 0.0  # used all the time
    assert path.stat().st_size <= 1.1 * 2**20
    with ScoreCache(path, limit_mb=1) as cache:
        kept = [number for number in range(100) if cache.get(WHO, question(noise(number, 60_000))) is not None]
    assert kept[0] == 0 and len(kept) > 20 and kept[1:] == list(range(101 - len(kept), 100))


def test_recent_use_survives_a_restart(path):
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


def test_a_smaller_limit_applies_from_the_next_put(path):
    with ScoreCache(path, limit_mb=8) as cache:
        for number in range(100):
            cache.put(WHO, question(noise(number, 60_000)), number)
    before = count(path)
    with ScoreCache(path, limit_mb=1) as cache:
        cache.put(WHO, question(), 1)
    assert count(path) < before / 2


def test_a_judgement_larger_than_a_tenth_of_the_limit_is_not_stored(path):
    with ScoreCache(path, limit_mb=1) as cache:
        cache.put(WHO, question(), 1)
        cache.put(WHO, question(noise(1, 5_000_000)), 2)
        assert [row.score for row in cache.rows()] == [1.0]


def test_a_limit_of_zero_is_rejected(path):
    with pytest.raises(ValueError, match="limit_mb=0"):
        ScoreCache(path, limit_mb=0)


def test_a_file_that_is_not_a_cache_is_rejected_and_left_unchanged(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(ValueError, match=r"scores\.sqlite: "):
        ScoreCache(path)
    assert path.read_bytes() == b"not a database at all" * 1000
    path.unlink()
    changed(path, "CREATE TABLE judgement (key, score, used, texts)")
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"scores\.sqlite: .*version 1"):
        ScoreCache(path)
    assert path.read_bytes() == content


def test_a_file_of_another_version_is_rejected(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 1)
    changed(path, "PRAGMA user_version = 2")
    with pytest.raises(ValueError, match=r"scores\.sqlite.*version 1"):
        ScoreCache(path)


def test_a_folder_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        ScoreCache(tmp_path)


def test_a_truncated_file_does_not_stop_a_run(path, caplog):
    with ScoreCache(path) as cache:
        for number in range(50):
            cache.put(WHO, question(noise(number, 60_000)), number)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    try:
        with ScoreCache(path) as cache:
            scores = {cache.get(WHO, question(noise(number, 60_000))) for number in range(50)}
            cache.put(WHO, question(), 1)
            list(cache.rows())
    except ValueError as error:
        assert "scores.sqlite" in str(error)
    else:
        assert scores <= {None, *range(50)}


@pytest.mark.parametrize("score", ["10", "1e1", b"10", b"\x00" * 8, "abc", 9e999, -9e999, b"\xff", 10, "x" * 1_000_000])
def test_a_forged_score_is_a_finite_number_or_ignored(path, score):
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


def test_a_score_from_a_forged_table_without_column_types_is_ignored(path):
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
    changed(path, "ALTER TABLE judgement RENAME TO old")
    changed(path, "CREATE TABLE judgement (key, score, used, texts)")
    changed(path, "INSERT INTO judgement SELECT key, '10', used, texts FROM old")
    with ScoreCache(path) as cache:
        assert cache.get(WHO, question()) is None


FORGED = [b'["a", "b", "c", "d"]', b'["a", "b", "c", 4]', b'["a"]', b"[]", b"4", b"junk", b"[" * 10**6, b'{"a": 1}']


@pytest.mark.parametrize("texts", [*map(zlib.compress, FORGED), b"junk", b"", "text", 7])
def test_rows_skips_texts_that_do_not_match_their_key(path, texts):
    with ScoreCache(path) as cache:
        cache.put(WHO, question("first"), 1)
        cache.put(WHO, question("second"), 2)
    changed(path, "UPDATE judgement SET texts = ? WHERE score = 1", texts)
    with ScoreCache(path) as cache:
        assert [row.score for row in cache.rows()] == [2.0]


def test_decompression_of_texts_is_limited(path, monkeypatch):
    monkeypatch.setattr(cache_module, "_MAX_TEXT_BYTES", 1000)
    with ScoreCache(path) as cache:
        cache.put(WHO, question("x" * 2000), 1)
        cache.put(WHO, question(), 2)
        assert [row.score for row in cache.rows()] == [2.0]
        assert cache.get(WHO, question("x" * 2000)) == 1.0


def test_a_full_disk_is_logged_once_and_raises_nothing(path, caplog, monkeypatch):
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


def test_a_lasting_lock_is_tried_again_after_a_minute(path, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cache_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(cache_module, "_LOCK_TIMEOUT_S", 0.0)
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
        other = sqlite3.connect(path)
        before = other.execute("PRAGMA data_version").fetchone()  # another number after every commit of others
        for _ in range(100):
            cache.get(WHO, question())
            cache.get(WHO, question("unknown"))
        assert other.execute("PRAGMA data_version").fetchone() == before
        cache.put(WHO, question("unknown"), 1)
        assert other.execute("PRAGMA data_version").fetchone() != before
        other.close()


def test_using_a_closed_cache_raises(path):
    cache = ScoreCache(path)
    cache.close()
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get(WHO, question())
    with pytest.raises(sqlite3.ProgrammingError):
        cache.put(WHO, question(), 1)


def test_scores_of_a_server_without_its_url_stay_but_are_not_reused(path, caplog):
    """Earlier versions stored the model's name alone, which two servers can share."""
    earlier = "openai model=judge prompt=v1 answer=choice temperature=0"
    now = OpenAIScorer("http://localhost:8000/v1", "judge").identity
    with ScoreCache(path) as cache:
        cache.put(earlier, question(), 3.0)
    assert not caplog.messages
    with ScoreCache(path) as cache:
        assert cache.get(now, question()) is None and cache.get(earlier, question()) == 3.0
        cache.put(now, question(), 7.0)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: its scores by servers stay in the file but are not reused")
    caplog.clear()
    with ScoreCache(path) as cache:
        assert [(row.identity, row.score) for row in cache.rows()] == [(earlier, 3.0), (now, 7.0)]
    assert not caplog.messages, "it was said before"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_file_that_others_can_write_is_not_used_unless_it_is_trusted(path, monkeypatch, suffix):
    """The folder may be /tmp, where another user can take the name first."""
    path.parent.mkdir()
    file = path.with_name(path.name + suffix)
    file.touch()
    file.chmod(0o666)
    with pytest.raises(ValueError, match=rf"{file}: other users can write it.*{cache_module.TRUSTED}={path} "):
        ScoreCache(path)
    monkeypatch.setenv(cache_module.TRUSTED, str(path.parent / "other"))
    with pytest.raises(ValueError, match="other users can write it"):
        ScoreCache(path)
    monkeypatch.setenv(cache_module.TRUSTED, str(path))
    with ScoreCache(path) as cache:
        cache.put(WHO, question(), 7)
        assert cache.get(WHO, question()) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_used(path):
    path.parent.mkdir()
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(ValueError, match=rf"{path}: it belongs to user id 65534"):
        ScoreCache(path)


def test_a_new_file_can_be_opened_again_whatever_the_umask_is(path):
    before = os.umask(0)
    try:
        for _ in range(2):
            with ScoreCache(path) as cache:
                cache.put(WHO, question(), 7)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o022 == 0


def test_the_remedy_for_a_disk_is_no_folder_of_all_users(tmp_path, monkeypatch):
    record_mounts(tmp_path, MOUNTS, monkeypatch)
    with pytest.raises(ValueError, match=rf"for example {Path.home()}/judge\.sqlite"):
        journal_mode(Path("/bee/me/judge.sqlite"), mounts())
