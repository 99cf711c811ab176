"""The score cache: one SQLite file that stores judge scores, so that no run pays for the same score twice."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from verl_gsd.file_access import is_open_to_others
from verl_gsd.judge import disks
from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import Question
from verl_gsd.judge.settings import JudgeSettings

VERSION = 1
#: The environment variable with the path of one cache that other users may own or write.
TRUSTED = "VERL_GSD_TRUSTED_CACHE"

_APPLICATION_ID = 0x6773646A  # in SQLite's header; marks the file as ours
_LOCK_TIMEOUT_S = 5.0  # SQLite waits this long for another writer
_PAUSE_S = 60.0  # no write is attempted for this long after a failure
_JOURNAL_BYTES = 4 << 20
_MAX_TEXT_BYTES = 1 << 28  # uncompressed; texts that unpack to more are treated as an attempt to exhaust memory
_JOURNALS = ("-journal", "-wal", "-shm")  # what SQLite adds to the file's name
_EVICT_DOWN_TO = 0.9  # share of the limit, once the limit is exceeded

# The texts are the last column: SQLite reads all pages of a long value to reach the columns behind it.
_SCHEMA = (
    "CREATE TABLE judgement"
    " (key BLOB NOT NULL UNIQUE, score REAL NOT NULL, used INTEGER NOT NULL, texts BLOB NOT NULL)",
    "CREATE INDEX judgement_used ON judgement(used)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
# The file may come from an untrusted user, and SQLite columns hold values of any type. Accept only finite numbers.
_SCORE = "CASE WHEN typeof(score) = 'real' AND abs(score) < 9e999 THEN score END"
_NEXT_USE = "(SELECT ifnull(max(used), 0) + 1 FROM judgement)"
_SIZE = (
    "SELECT (page_count - freelist_count) * page_size"
    " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
)
_DELETE_OLDEST = (
    "DELETE FROM judgement WHERE rowid IN"
    " (SELECT rowid FROM judgement ORDER BY used LIMIT (SELECT max(1, count(*) / 50) FROM judgement))"
)

#: The identities of ``OpenAIScorer`` in earlier versions.
_WITHOUT_SERVER = re.compile(r"openai model=(?!.* server=).* prompt=")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """A stored score, with the scorer's identity and the question that it belongs to."""

    identity: str
    question: Question
    score: float


#: Number of keys read since the last write that are kept in memory, at 200 bytes each.
_MAX_READS = 100_000


class ScoreCache:
    """Maps a scorer's identity and a question to a score, in one SQLite file.

    Any number of processes and threads may use the file at the same time. On some network disks (listed in
    ``disks.py``), processes on several hosts may share it.

    The cache only saves calls. If the file can no longer be read or written (a full disk, a lock that another process
    holds), the cache logs one warning, finds and stores no scores, and raises no error. It tries to write again after
    one minute.

    Args:
        path: the file. It is created, with its folder, if it does not exist. While it is open, SQLite keeps one or two
            more files next to it.
        limit_mb: maximum size of the file in MiB. The least recently used judgements are evicted. A judgement that
            would take more than a tenth of the limit is not stored.

    Raises:
        ValueError: the file is not a cache, has another version, cannot be opened, belongs to another user, can be
            written by others, or lies on a disk where several hosts could damage it. The message names the file. The
            environment variable ``TRUSTED`` admits a file of others.
        OSError: the folder cannot be created.
    """

    def __init__(self, path: Path, limit_mb: int = JudgeSettings.default("cache_mb")) -> None:
        if limit_mb < 1:
            raise ValueError(f"limit_mb={limit_mb} is not positive. Use a number of MiB, 1 or more")
        self._path = path
        self._limit = limit_mb << 20
        self._reads: dict[bytes, bool] = {}  # keys read since the last write, in order -> whether the score was valid
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._has_warned = False
        self._no_writes_before = -math.inf
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = _journal_mode(path)
        self._is_shared = journal != "wal"  # several hosts may have the file open
        if not _is_trusted(path):
            _check_owner(path)
        self._writer, self._reader = _open(path, journal)
        self._warn_of_scores_without_server()

    def get(self, identity: str, question: Question) -> float | None:
        """The score that the scorer ``identity`` gave, or None. Writes nothing to the file."""
        key = _key(identity, question)
        try:
            with self._reading:
                # If a file server loses a lock, the index may point to another row, so compare the row's texts.
                columns = f"{_SCORE}, texts" if self._is_shared else _SCORE
                row = self._reader.execute(f"SELECT {columns} FROM judgement WHERE key = ?", (key,)).fetchone()
                score = row[0] if row and (not self._is_shared or _belongs(row[1], key)) else None
                if row:
                    self._reads.pop(key, None)
                    self._reads[key] = score is not None
                    if len(self._reads) > _MAX_READS:  # the oldest would be evicted first anyway
                        del self._reads[next(iter(self._reads))]
        except sqlite3.Error as error:
            self._handle_error(error)
            return None
        return score

    def put(self, identity: str, question: Question, score: float) -> None:
        """Store a score if possible. Waits up to 5 seconds if another process holds the lock.

        Raises:
            ValueError: ``score`` is not finite.
        """
        if not math.isfinite(score):
            raise ValueError("the score is not finite and cannot be stored")
        # ASCII JSON can represent every string, including lone surrogates.
        texts = zlib.compress(json.dumps([identity, *_texts(question)]).encode())
        if 10 * len(texts) <= self._limit:
            values = (_key(identity, question), float(score), texts)
            self._write(
                f"INSERT OR REPLACE INTO judgement (key, score, texts, used) VALUES (?, ?, ?, {_NEXT_USE})", values
            )

    def rows(self) -> Iterator[Judgement]:
        """Every valid judgement, oldest first. Damaged rows are skipped. Others may write during the iteration.

        Raises:
            ValueError: the whole file can no longer be read. The message names it.
        """
        rowid = 0
        # Read one row per query: a reader that keeps a transaction open prevents SQLite from truncating its journal.
        query = f"SELECT rowid, key, {_SCORE}, texts FROM judgement WHERE rowid > ? ORDER BY rowid LIMIT 1"
        while True:
            try:
                with self._reading:
                    row = self._reader.execute(query, (rowid,)).fetchone()
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{self._path}: cannot be read ({error}). Delete it, or use another file") from error
            if row is None:
                return
            rowid, key, score, texts = row
            unpacked = _unpack(texts)
            if unpacked and score is not None and _key(*unpacked) == key:
                yield Judgement(*unpacked, score)

    def close(self) -> None:
        """Save which judgements were used last, and close the file. May be called twice."""
        if self._reads:
            self._write()
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, statement: str = "", values: tuple[Any, ...] = ()) -> None:
        """In one transaction: record the reads since the last write, execute ``statement``, evict if necessary."""
        if monotonic() < self._no_writes_before:
            return
        with self._reading:
            reads, self._reads = self._reads, {}
        try:
            with self._writing:
                with self._writer:
                    self._writer.execute("BEGIN IMMEDIATE")
                    start = perf_counter()
                    for key, is_valid in reads.items():
                        change = f"UPDATE judgement SET used = {_NEXT_USE}" if is_valid else "DELETE FROM judgement"
                        self._writer.execute(f"{change} WHERE key = ?", (key,))
                    self._writer.execute(statement, values)
                    if self._size() > self._limit:  # SQLite reuses freed pages, so the file grows no further
                        while (
                            self._size() > _EVICT_DOWN_TO * self._limit
                            and self._writer.execute(_DELETE_OLDEST).rowcount
                        ):
                            pass
                if self._is_shared:
                    # Other processes try the lock ten times per second. On a network disk each commit waits for the
                    # server, so they could find the lock taken at every try until they give up. Leave the lock free
                    # for as long as we held it.
                    sleep(perf_counter() - start)
        except sqlite3.Error as error:
            self._handle_error(error)

    def _warn_of_scores_without_server(self) -> None:
        """Say once that scores of earlier versions are not reused: until the file has a newer score than theirs."""
        try:
            newest = self._reader.execute("SELECT texts FROM judgement ORDER BY rowid DESC LIMIT 1").fetchone()
        except sqlite3.Error:  # the first use of the file handles it
            return
        unpacked = _unpack(newest[0]) if newest else None
        if unpacked and _WITHOUT_SERVER.match(unpacked[0]):
            logger.warning(
                "%s: its scores by servers stay in the file but are not reused. An earlier version of verl-gsd stored "
                "them, without the server's URL",
                self._path,
            )

    def _size(self) -> int:
        """Bytes of the pages in use."""
        return self._writer.execute(_SIZE).fetchone()[0]

    def _handle_error(self, error: sqlite3.Error) -> None:
        """Pause writing, and log the first error. A ProgrammingError is a bug of ours, so it is raised."""
        if isinstance(error, sqlite3.ProgrammingError):  # for example a closed cache that is still used
            raise error
        self._no_writes_before = monotonic() + _PAUSE_S
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s: the judge's score cache is temporarily unavailable: %s", self._path, error)


def _journal_mode(path: Path) -> str:
    try:
        return disks.journal_mode(path, disks.mounts())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_trusted(path: Path) -> bool:
    named = os.environ.get("VERL_GSD_TRUSTED_CACHE", "")
    return named != "" and Path(named).expanduser().resolve() == path.resolve()


def _check_owner(path: Path) -> None:
    """Create the file if it is missing, and check that nobody else can change it or has made it.

    Its owner could read the texts that are judged, and change scores that a run trains on.

    Raises:
        ValueError: as described. The message names the file.
    """
    with suppress(OSError):  # it exists, or SQLite says why it cannot be created
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))  # whatever the umask is
    for file in (path, *(path.with_name(path.name + suffix) for suffix in _JOURNALS)):
        try:
            owner, is_open = file.stat().st_uid, is_open_to_others(file, os.W_OK)
        except FileNotFoundError:
            continue
        if owner not in (os.geteuid(), 0) or is_open:
            problem = "other users can write it" if is_open else f"it belongs to user id {owner}"
            raise ValueError(
                f"{file}: {problem}, who could read what is judged and change scores. Use a file of your own in a "
                f"folder where only you can write. If you trust everyone who can write it, set {TRUSTED}={path} in the "
                "environment"
            )


def _connect(path: Path, journal: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    # With NORMAL, a power failure may damage the file, unless its journal is a write-ahead log.
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if journal == 'wal' else 'FULL'}")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    return connection


def _open(path: Path, journal: str) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Two connections (writer, reader) to a cache. Creates the tables in an empty file; leaves any other file as is."""
    try:
        writer = _connect(path, journal)
        if _is_cache(writer):
            _set_journal_mode(path, writer, journal)
            reader = _connect(path, journal)  # separate: with a write-ahead log, a reader waits for no writer
            _set_journal_mode(path, reader, journal)  # a reader recovers from the journal of a crashed writer
            return writer, reader
        writer.close()
        reason = f"is not a score cache of version {VERSION}"
    except sqlite3.Error as error:
        reason = f"cannot be used as a score cache ({error})"
    raise ValueError(f"{path}: {reason}. Delete it, or use another file")


def _set_journal_mode(path: Path, connection: sqlite3.Connection, journal: str) -> None:
    if journal == "wal":
        connection.execute("PRAGMA journal_mode = wal")
        return
    try:
        (actual,) = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
    except sqlite3.OperationalError as error:  # the file has a write-ahead log, and another process uses it
        actual = str(error)
    if actual != journal:
        raise ValueError(
            f"{path}: the file is on a network disk, and another process has it open in a journal mode that is unsafe "
            f"there: {actual}. End that process, or use another file"
        )


def _is_cache(connection: sqlite3.Connection) -> bool:
    """Whether the file is a cache of this version. An empty file becomes one."""
    queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # if two processes open an empty file, only one creates the tables
        stamp = tuple(connection.execute(query).fetchone()[0] for query in queries)
        if not any(stamp):
            for statement in _SCHEMA:
                connection.execute(statement)
    return not any(stamp) or stamp[:2] == (_APPLICATION_ID, VERSION)


def _texts(question: Question) -> tuple[str, str, str]:
    return question.problem, question.reference, question.response


def _key(identity: str, question: Question) -> bytes:
    return digest(identity, *_texts(question))


def _belongs(texts: object, key: bytes) -> bool:
    """Whether a row's compressed texts are the ones that ``key`` is computed from."""
    unpacked = _unpack(texts)
    return unpacked is not None and _key(*unpacked) == key


def _unpack(texts: object) -> tuple[str, Question] | None:
    """The identity and the question in a row's compressed texts, or None if the texts are damaged."""
    try:
        identity, *question_texts = json.loads(
            zlib.decompressobj().decompress(texts, _MAX_TEXT_BYTES)  # type: ignore[arg-type]
        )
        question = Question(*question_texts)
    except (zlib.error, ValueError, TypeError, RecursionError):
        return None
    return (identity, question) if all(isinstance(text, str) for text in (identity, *_texts(question))) else None
