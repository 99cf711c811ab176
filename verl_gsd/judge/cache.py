"""Scores that were paid for once: a file of judgements, shared by all runs that name it."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from verl_gsd.judge import disks
from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import Question
from verl_gsd.judge.settings import JudgeSettings

VERSION = 1

_APPLICATION = 0x6773646A  # whose file it is, in SQLite's header
_BUSY_S = 5.0  # how long another writer is waited for
_PAUSE_S = 60.0  # after a failure no write is tried for this long
_JOURNAL_BYTES = 4 << 20
_LARGEST = 1 << 28  # bytes of texts, unpacked; what unpacks to more was made to fill the memory
_KEEP = 0.9  # of the limit, once it is passed

# The texts come last: a value behind a long one is reached through all of its pages.
_SCHEMA = (
    "CREATE TABLE judgement"
    " (key BLOB NOT NULL UNIQUE, score REAL NOT NULL, used INTEGER NOT NULL, texts BLOB NOT NULL)",
    "CREATE INDEX judgement_used ON judgement(used)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
# A file may be of anybody's making, and SQLite's columns hold any type: a finite number alone is read as a score.
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """A stored score, and all it was given for."""

    identity: str
    question: Question
    score: float


#: Keys read since the last write that are remembered, 200 bytes each.
_READS = 100_000


class ScoreCache:
    """Scores by scorer and question in one SQLite file, for any number of processes and threads at once.

    On a network disk, processes of several hosts may share the file (``disks.py`` says on which).

    The cache saves calls and nobody depends on it: where the file cannot be read or written later on (a full disk, a
    lock that another process keeps), that is logged once, scores are neither found nor stored, and no error is raised;
    writing is tried again after a minute.

    Args:
        path: the file, made where there is none, its folder included; while it is open SQLite keeps one or two more
            beside it.
        limit_mb: MiB the file grows to; the judgements used longest ago make room. One that would take a tenth of it
            alone is not stored.

    Raises:
        ValueError: the file is no cache, or one of another version, or cannot be opened, or it lies on a disk where
            several hosts could damage it; the message names it.
        OSError: its folder cannot be made.
    """

    def __init__(self, path: Path, limit_mb: int = JudgeSettings.default("cache_mb")) -> None:
        if limit_mb < 1:
            raise ValueError(f"limit_mb={limit_mb}: out of range. Set it to a number of MiB, 1 or more")
        self._path = path
        self._limit = limit_mb << 20
        self._reads: dict[bytes, bool] = {}  # keys read since the last write, in order: was the score sound?
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._has_complained = False
        self._no_writes_before = -math.inf
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = _journal_mode(path)
        self._is_shared = journal != "wal"  # several hosts may have the file open
        self._writer, self._reader = _opened(path, journal)

    def get(self, identity: str, question: Question) -> float | None:
        """The score that ``identity`` gave, or None; writes nothing to the file."""
        key = _key(identity, question)
        try:
            with self._reading:
                # If a file server loses a lock, the index may point to another row, so its texts are compared.
                columns = f"{_SCORE}, texts" if self._is_shared else _SCORE
                found = self._reader.execute(f"SELECT {columns} FROM judgement WHERE key = ?", (key,)).fetchone()
                score = found[0] if found and (not self._is_shared or _belongs(found[1], key)) else None
                if found:
                    self._reads.pop(key, None)
                    self._reads[key] = score is not None
                    if len(self._reads) > _READS:  # nothing is written: the oldest is the first to be forgotten anyway
                        del self._reads[next(iter(self._reads))]
        except sqlite3.Error as error:
            self._complain(error)
            return None
        return score

    def put(self, identity: str, question: Question, score: float) -> None:
        """Remember a score, if that can be done; where another process keeps the file, waits for it some seconds.

        Raises:
            ValueError: ``score`` is not finite.
        """
        if not math.isfinite(score):
            raise ValueError("a score that is not finite is none, and is not stored")
        # JSON in ASCII has a way to write every string, lone surrogates included.
        texts = zlib.compress(json.dumps([identity, *_texts(question)]).encode())
        if 10 * len(texts) <= self._limit:
            values = (_key(identity, question), float(score), texts)
            self._write(
                f"INSERT OR REPLACE INTO judgement (key, score, texts, used) VALUES (?, ?, ?, {_NEXT_USE})", values
            )

    def rows(self) -> Iterator[Judgement]:
        """Every sound judgement, the oldest first; what is damaged is left out. Others may write meanwhile.

        Raises:
            ValueError: the file as a whole can no longer be read; the message names it.
        """
        row = 0
        # One at a time: a reader that stays at one place keeps SQLite's journal from being emptied.
        query = f"SELECT rowid, key, {_SCORE}, texts FROM judgement WHERE rowid > ? ORDER BY rowid LIMIT 1"
        while True:
            try:
                with self._reading:
                    found = self._reader.execute(query, (row,)).fetchone()
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{self._path}: cannot be read ({error}); delete it, or name another file") from error
            if found is None:
                return
            row, key, score, texts = found
            read = _unpacked(texts)
            if read and score is not None and _key(*read) == key:
                yield Judgement(*read, score)

    def close(self) -> None:
        """Write down what was used last, and let go of the file. May be called twice."""
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
        """Carry out ``statement``, once what was read since the last write has been noted; make room."""
        if monotonic() < self._no_writes_before:
            return
        with self._reading:
            reads, self._reads = self._reads, {}
        try:
            with self._writing:
                with self._writer:
                    self._writer.execute("BEGIN IMMEDIATE")
                    start = perf_counter()
                    for key, is_sound in reads.items():
                        change = f"UPDATE judgement SET used = {_NEXT_USE}" if is_sound else "DELETE FROM judgement"
                        self._writer.execute(f"{change} WHERE key = ?", (key,))
                    self._writer.execute(statement, values)
                    if self._size() > self._limit:  # pages that become free are used again: the file grows no further
                        while self._size() > _KEEP * self._limit and self._writer.execute(_DELETE_OLDEST).rowcount:
                            pass
                if self._is_shared:
                    # Others ask for the lock ten times a second. If each commit waits for a server, they would find it
                    # taken every time until they give up, so it stays free for as long as it was held.
                    sleep(perf_counter() - start)
        except sqlite3.Error as error:
            self._complain(error)

    def _size(self) -> int:
        """Bytes of the pages that hold something."""
        return self._writer.execute(_SIZE).fetchone()[0]

    def _complain(self, error: sqlite3.Error) -> None:
        if isinstance(error, sqlite3.ProgrammingError):  # a closed cache that is still asked: ours to mend
            raise error
        self._no_writes_before = monotonic() + _PAUSE_S
        if not self._has_complained:
            self._has_complained = True
            logger.warning("%s: scores are not cached for now: %s", self._path, error)


def _journal_mode(path: Path) -> str:
    try:
        return disks.journal_mode(path, disks.mounts())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _connected(path: Path, journal: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    # A power failure may damage a file under NORMAL, unless its journal is a write-ahead log.
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if journal == 'wal' else 'FULL'}")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    return connection


def _opened(path: Path, journal: str) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Two connections to a cache, made where the file is empty; a file of anything else is left as it is."""
    try:
        writer = _connected(path, journal)
        if _is_cache(writer):
            _set_journal_mode(path, writer, journal)
            reader = _connected(path, journal)  # its own: with a write-ahead log, who reads waits for no writer
            _set_journal_mode(path, reader, journal)  # a reader ends the journal of a writer that crashed
            return writer, reader
        writer.close()
        reason = f"is no cache of judgements of version {VERSION}"
    except sqlite3.Error as error:
        reason = f"cannot be used as a cache of judgements ({error})"
    raise ValueError(f"{path}: {reason}; delete it, or name another file")


def _set_journal_mode(path: Path, connection: sqlite3.Connection, journal: str) -> None:
    if journal == "wal":
        connection.execute("PRAGMA journal_mode = wal")
        return
    try:
        (found,) = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
    except sqlite3.OperationalError as error:  # the file has a write-ahead log, and somebody uses it
        found = str(error)
    if found != journal:
        raise ValueError(
            f"{path}: lies on a network disk, and another process has it open in a mode that is unsafe there: {found}. "
            "End that process, or name another file"
        )


def _is_cache(connection: sqlite3.Connection) -> bool:
    questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # of two processes that find it empty one makes it
        stamp = tuple(connection.execute(question).fetchone()[0] for question in questions)
        if not any(stamp):
            for statement in _SCHEMA:
                connection.execute(statement)
    return not any(stamp) or stamp[:2] == (_APPLICATION, VERSION)


def _texts(question: Question) -> tuple[str, str, str]:
    return question.problem, question.reference, question.response


def _key(identity: str, question: Question) -> bytes:
    return digest(identity, *_texts(question))


def _belongs(texts: object, key: bytes) -> bool:
    read = _unpacked(texts)
    return read is not None and _key(*read) == key


def _unpacked(texts: object) -> tuple[str, Question] | None:
    try:
        identity, *of_question = json.loads(zlib.decompressobj().decompress(texts, _LARGEST))  # type: ignore[arg-type]
        question = Question(*of_question)
    except (zlib.error, ValueError, TypeError, RecursionError):
        return None
    return (identity, question) if all(isinstance(text, str) for text in (identity, *_texts(question))) else None
