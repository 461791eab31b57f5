"""Answers of a listening study in SQLite: a row and a transaction for each, and nothing about a person."""

from __future__ import annotations

import csv
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS listeners (code TEXT PRIMARY KEY, begun TEXT NOT NULL, trained INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS ratings (
    code TEXT NOT NULL REFERENCES listeners (code), excerpt TEXT NOT NULL, condition TEXT NOT NULL,
    score INTEGER NOT NULL CHECK (score BETWEEN 0 AND 100), at TEXT NOT NULL,
    PRIMARY KEY (code, excerpt, condition));
CREATE TABLE IF NOT EXISTS pages (
    code TEXT NOT NULL, excerpt TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (code, excerpt));
CREATE TABLE IF NOT EXISTS preferences (
    code TEXT NOT NULL REFERENCES listeners (code), excerpt TEXT NOT NULL, preferred TEXT NOT NULL, over TEXT NOT NULL,
    tie INTEGER NOT NULL CHECK (tie IN (0, 1)), at TEXT NOT NULL, PRIMARY KEY (code, excerpt));
"""


@dataclass(frozen=True)
class Rating:
    code: str
    excerpt: str
    condition: str
    score: int


@dataclass(frozen=True)
class Preference:
    """`tie` is 1 where neither was preferred."""

    code: str
    excerpt: str
    preferred: str
    over: str
    tie: int


class Store:
    """The answers in a file; what a call has returned from survives a crash of the process and of the machine."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(SCHEMA)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, query: str, *values: str) -> list[tuple[object, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def begin(self, code: str) -> None:
        """A listener begins, or comes back."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO listeners (code, begun) VALUES (?, ?)", (code, _now()))

    def known(self, code: str) -> bool:
        return bool(self._rows("SELECT 1 FROM listeners WHERE code = ?", code))

    def train(self, code: str) -> None:
        """The listener has finished the training page."""
        with self._transaction() as connection:
            connection.execute("UPDATE listeners SET trained = 1 WHERE code = ?", (code,))

    def trained(self, code: str) -> bool:
        return bool(self._rows("SELECT 1 FROM listeners WHERE code = ? AND trained", code))

    def rate(self, code: str, excerpt: str, condition: str, score: int) -> None:
        """A rating from 0 to 100; a later one of the same stimulus replaces it."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO ratings VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET score = excluded.score,"
                " at = excluded.at",
                (code, excerpt, condition, score, _now()),
            )

    def finish(self, code: str, excerpt: str) -> None:
        """The listener has gone on to the next page."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO pages VALUES (?, ?, ?)", (code, excerpt, _now()))

    def prefer(self, code: str, excerpt: str, preferred: str, over: str, tie: bool) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO preferences VALUES (?, ?, ?, ?, ?, ?)",
                (code, excerpt, preferred, over, int(tie), _now()),
            )

    def ratings(self, code: str | None = None) -> list[Rating]:
        rows = self._rows("SELECT code, excerpt, condition, score FROM ratings ORDER BY code, excerpt, condition")
        ratings = [Rating(*row) for row in rows]  # type: ignore[arg-type]
        return [rating for rating in ratings if code in (None, rating.code)]

    def finished(self, code: str) -> set[str]:
        """Excerpts whose page this listener has left behind."""
        return {str(row[0]) for row in self._rows("SELECT excerpt FROM pages WHERE code = ?", code)}

    def preferences(self, code: str | None = None) -> list[Preference]:
        rows = self._rows("SELECT code, excerpt, preferred, over, tie FROM preferences ORDER BY code, excerpt")
        preferences = [Preference(*row) for row in rows]  # type: ignore[arg-type]
        return [preference for preference in preferences if code in (None, preference.code)]

    def close(self) -> None:
        self._connection.close()


def export(store: Store, folder: Path) -> tuple[Path, Path]:
    """Writes `ratings.csv` and `preferences.csv`."""
    tables = {
        "ratings": (("code", "excerpt", "condition", "score"), [astuple(rating) for rating in store.ratings()]),
        "preferences": (
            ("code", "excerpt", "preferred", "over", "tie"),
            [astuple(preference) for preference in store.preferences()],
        ),
    }
    for name, (header, rows) in tables.items():
        part = folder / f".{name}.csv.part"
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        part.replace(folder / f"{name}.csv")
    return folder / "ratings.csv", folder / "preferences.csv"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
