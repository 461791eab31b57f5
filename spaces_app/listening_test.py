"""A listening test in the browser: MUSHRA (ITU-R BS.1534-3) and preference in pairs.

    python -m spaces_app.listening_test draft --results build/benchmark/test --out study.yaml
    python -m spaces_app.listening_test build --study study.yaml --out build/study
    python -m spaces_app.listening_test serve --folder build/study
    python -m spaces_app.listening_test analyze --folder build/study

Listeners are known by a code only, under which they may pause and come back. Every rating is on the disk before the
page hears of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sqlite3
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import uvicorn
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline_aud2studio.files import atomic_path
from spaces_app.analysis import analyze, markdown, plot
from spaces_app.study import REFERENCE, Study, build, draft, load_study, read_config

PAGE = Path(__file__).with_name("listening_test.html")
DATABASE = "ratings.sqlite"
CODE_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that look alike
TRAINING, MUSHRA, PREFERENCE = "training", "mushra", "preference"


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


class Rating(NamedTuple):
    """A score from 0 to 100."""

    code: str
    excerpt: str
    condition: str
    score: int


class Preference(NamedTuple):
    """`tie` is 1 where neither was preferred."""

    code: str
    excerpt: str
    preferred: str
    over: str
    tie: int


class Store:
    """The answers in SQLite, nothing about a person; what a call has returned from survives a crash of the machine."""

    def __init__(self, path: Path) -> None:
        # Without an isolation level every statement is a transaction.
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(SCHEMA)

    def _do(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def begin(self, code: str) -> None:
        """A listener begins, or comes back."""
        self._do("INSERT OR IGNORE INTO listeners (code, begun) VALUES (?, ?)", code, _now())

    def known(self, code: str) -> bool:
        return bool(self._do("SELECT 1 FROM listeners WHERE code = ?", code))

    def train(self, code: str) -> None:
        """The listener has finished the training page."""
        self._do("UPDATE listeners SET trained = 1 WHERE code = ?", code)

    def trained(self, code: str) -> bool:
        return bool(self._do("SELECT 1 FROM listeners WHERE code = ? AND trained", code))

    def rate(self, code: str, excerpt: str, condition: str, score: int) -> None:
        """A later rating of the same stimulus replaces an earlier one."""
        self._do("INSERT OR REPLACE INTO ratings VALUES (?, ?, ?, ?, ?)", code, excerpt, condition, score, _now())

    def finish(self, code: str, excerpt: str) -> None:
        """The listener has gone on to the next page."""
        self._do("INSERT OR IGNORE INTO pages VALUES (?, ?, ?)", code, excerpt, _now())

    def prefer(self, code: str, excerpt: str, preferred: str, over: str, tie: bool) -> None:
        values = code, excerpt, preferred, over, int(tie), _now()
        self._do("INSERT OR REPLACE INTO preferences VALUES (?, ?, ?, ?, ?, ?)", *values)

    def ratings(self, code: str = "%") -> list[Rating]:
        """Lists the ratings of a listener, or of all."""
        query = "SELECT code, excerpt, condition, score FROM ratings WHERE code LIKE ? ORDER BY 1, 2, 3"
        return [Rating(*row) for row in self._do(query, code)]

    def finished(self, code: str) -> set[str]:
        """Excerpts whose page this listener has left behind."""
        return {row[0] for row in self._do("SELECT excerpt FROM pages WHERE code = ?", code)}

    def preferences(self, code: str = "%") -> list[Preference]:
        """Lists the preferences of a listener, or of all."""
        query = "SELECT code, excerpt, preferred, over, tie FROM preferences WHERE code LIKE ? ORDER BY 1, 2"
        return [Preference(*row) for row in self._do(query, code)]

    def close(self) -> None:
        self._connection.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- The server ------------------------------------------------------------------------------------------------------


class Message(BaseModel):
    """What a page says of one of its stimuli."""

    model_config = ConfigDict(strict=True)

    code: str
    number: Annotated[int, Field(ge=0)]  # of the page
    token: str = ""
    score: Annotated[int, Field(ge=0, le=100)] | None = None
    tie: bool = False


class Server:
    """The test's pages and answers over HTTP; everything that is stored goes through `store`."""

    def __init__(self, study: Study, store: Store) -> None:
        self.study, self.store = study, store

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/api/begin", self.begin, methods=["POST"]),
                Route("/api/rate", self.rate, methods=["POST"]),
                Route("/api/finish", self.finish, methods=["POST"]),
                Route("/api/prefer", self.prefer, methods=["POST"]),
                Route("/audio/{code}/{part}/{token}.flac", self.audio),
            ],
            exception_handlers={HTTPException: _sentence},
        )

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE, media_type="text/html")

    async def begin(self, request: Request) -> Response:
        """A new listener, or one who comes back with his code: all that is left for him to do."""
        content = await _content(request)
        code = str(content.get("code") or "").strip().upper()
        if code and not self.store.known(code):
            raise HTTPException(404, f"The code {code} is not known here: check it, or begin without one.")
        code = code or "".join(secrets.choice(CODE_LETTERS) for _ in range(8))
        self.store.begin(code)
        return JSONResponse({"code": code, "title": self.study.title, "pages": self._pages(code)})

    def _pages(self, code: str) -> list[dict[str, Any]]:
        study = self.study
        scores = {(rating.excerpt, rating.condition): rating.score for rating in self.store.ratings(code)}
        finished = self.store.finished(code)
        answered = {preference.excerpt for preference in self.store.preferences(code)}
        pages = [self._page(code, TRAINING, study.training, {}, self.store.trained(code))]
        order = study.order(code)
        pages += [self._page(code, MUSHRA, excerpt, scores, excerpt in finished) for excerpt in order]
        if study.preference is not None:
            pages += [self._page(code, PREFERENCE, excerpt, {}, excerpt in answered) for excerpt in order]
        return pages

    def _page(
        self, code: str, kind: str, excerpt: str, scores: dict[tuple[str, str], int], done: bool
    ) -> dict[str, Any]:
        """One page; excerpts and conditions go by their place in the listener's order, never by their name."""
        study = self.study
        number = 0 if kind == TRAINING else 1 + study.order(code).index(excerpt)
        conditions = study.pair(code, excerpt) if kind == PREFERENCE else study.stimuli(code, excerpt)
        tokens = [study.token(code, excerpt, condition) for condition in conditions]
        stimuli = [
            {"token": token, "url": f"audio/{code}/{number}/{token}.flac", "score": scores.get((excerpt, condition))}
            for token, condition in zip(tokens, conditions, strict=True)
        ]
        page = {"kind": kind, "number": number, "done": done, "stimuli": stimuli}
        if kind != PREFERENCE:
            page["reference"] = f"audio/{code}/{number}/open.flac"
        return page

    def _excerpt(self, code: str, number: int) -> str:
        order = [self.study.training, *self.study.order(code)]
        if not 0 <= number < len(order):
            raise HTTPException(404, f"There is no page {number}.")
        return order[number]

    async def _message(self, request: Request) -> tuple[Message, str]:
        """Reads a message of somebody who is known, and the excerpt that it is about."""
        try:
            message = Message.model_validate(await _content(request))
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if not self.store.known(message.code):
            raise HTTPException(404, f"The code {message.code} is not known here.")
        return message, self._excerpt(message.code, message.number)

    def _condition(self, code: str, excerpt: str, token: str) -> str:
        condition = self.study.condition(code, excerpt, token)
        if condition is None:
            raise HTTPException(404, "This stimulus is not one of the page.")
        return condition

    async def rate(self, request: Request) -> Response:
        message, excerpt = await self._message(request)
        condition = self._condition(message.code, excerpt, message.token)
        if message.score is None:
            raise HTTPException(400, "score is missing.")
        if excerpt != self.study.training:
            self.store.rate(message.code, excerpt, condition, message.score)
        return JSONResponse({"stored": True})

    async def finish(self, request: Request) -> Response:
        """The listener leaves a page: refused while a rating of it is missing."""
        message, excerpt = await self._message(request)
        if excerpt == self.study.training:
            self.store.train(message.code)
        else:
            rated = {rating.condition for rating in self.store.ratings(message.code) if rating.excerpt == excerpt}
            if missing := len(set(self.study.conditions) - rated):
                raise HTTPException(409, f"{missing} of the recordings on this page are not rated yet.")
            self.store.finish(message.code, excerpt)
        return JSONResponse({"stored": True})

    async def prefer(self, request: Request) -> Response:
        message, excerpt = await self._message(request)
        preferred, pair = self._condition(message.code, excerpt, message.token), self.study.pair(message.code, excerpt)
        if preferred not in pair:
            raise HTTPException(404, "This stimulus is not one of the pair.")
        over = next(name for name in pair if name != preferred)
        self.store.prefer(message.code, excerpt, preferred, over, message.tie)
        return JSONResponse({"stored": True})

    async def audio(self, request: Request) -> Response:
        code, token = request.path_params["code"], request.path_params["token"]
        part = request.path_params["part"]
        excerpt = self._excerpt(code, int(part) if part.isdecimal() else -1)
        condition = REFERENCE if token == "open" else self._condition(code, excerpt, token)
        return FileResponse(self.study.audio(excerpt, condition), media_type="audio/flac")


async def _sentence(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _content(request: Request) -> dict[str, Any]:
    try:
        content = await request.json()
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise HTTPException(400, "The message is not understood.")
    return content


def serve(folder: Path, host: str, port: int) -> None:
    study, store = load_study(folder), Store(folder / DATABASE)
    print(f"http://{host}:{port} - answers go to {folder / DATABASE}", flush=True)
    try:
        uvicorn.run(Server(study, store).app(), host=host, port=port, log_level="warning")
    finally:
        store.close()


def report(folder: Path) -> Path:
    """Writes the answers as CSV, and `analysis.json`, `.md` and `.png`."""
    study, store = load_study(folder), Store(folder / DATABASE)
    try:
        ratings = pd.DataFrame(store.ratings(), columns=Rating._fields)
        preferences = pd.DataFrame(store.preferences(), columns=Preference._fields)
    finally:
        store.close()
    for name, table in (("ratings", ratings), ("preferences", preferences)):
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    if ratings.empty:
        raise ValueError(f"{folder / DATABASE} holds no ratings yet")
    system = None if study.preference is None else study.preference[0]
    found = analyze(ratings, preferences, study.genres, system)
    with atomic_path(folder / "analysis.json") as temporary:
        pd.Series(found).to_json(temporary, indent=1, force_ascii=False)  # what is not a number becomes null
    (folder / "analysis.md").write_text(markdown(found), encoding="utf-8")
    if found["scores"]:
        plot(folder / "analysis.png", found)
    return folder / "analysis.md"


def arguments() -> argparse.ArgumentParser:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m spaces_app.listening_test", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("draft", help="a study of clips of the benchmark")
    command.add_argument(
        "--results", type=Path, default=Path("build/benchmark/test"), help="of the benchmark with --keep"
    )
    command.add_argument("--count", type=int, default=20, help="excerpts (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--title", default="How do these recordings sound?")
    command.add_argument("--out", type=Path, required=True, help="the study's YAML")
    command = commands.add_parser("build", help="cut, match in loudness, make the anchor")
    command.add_argument("--study", type=Path, required=True, help="the study's YAML")
    command.add_argument("--out", type=Path, required=True, help="the study's folder; an earlier one is replaced")
    command = commands.add_parser("serve", help="let listeners in")
    command.add_argument("--folder", type=Path, required=True, help="the study's folder")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines (default: %(default)s)")
    command.add_argument("--port", type=int, default=7870)
    command = commands.add_parser("analyze", help="tables and tests")
    command.add_argument("--folder", type=Path, required=True, help="the study's folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "draft":
            content = draft(options.results.absolute(), options.count, options.seed, options.title)
            options.out.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
            print(options.out)
        elif options.command == "build":
            if (options.out / DATABASE).exists():
                raise ValueError(f"{options.out / DATABASE} holds answers already: choose another folder")
            for notice in build(read_config(options.study), options.out):
                print(f"notice: {notice}")
            print(options.out)
        elif options.command == "serve":
            serve(options.folder, options.host, options.port)
        else:
            print(report(options.folder))
    except (ValueError, OSError) as error:
        print(f"listening_test: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
