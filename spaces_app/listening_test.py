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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline_aud2studio.files import atomic_path
from spaces_app.analysis import analyze, markdown, plot
from spaces_app.ratings import Store, export
from spaces_app.study import Study, build, draft, load_study, read_config

PAGE = Path(__file__).with_name("listening_test.html")
DATABASE = "ratings.sqlite"
CODE_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that look alike
TRAINING, MUSHRA, PREFERENCE = "training", "mushra", "preference"


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
        code = str((await _content(request)).get("code") or "").strip().upper()
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

    def _stimulus(self, content: dict[str, Any], key: str = "token") -> tuple[str, str, str]:
        """Code, excerpt and condition that a message is about."""
        code = _text(content, "code")
        if not self.store.known(code):
            raise HTTPException(404, f"The code {code} is not known here.")
        excerpt = self._excerpt(code, _whole(content, "number", 0, len(self.study.excerpts)))
        condition = self.study.condition(code, excerpt, _text(content, key))
        if condition is None:
            raise HTTPException(404, "This stimulus is not one of the page.")
        return code, excerpt, condition

    async def rate(self, request: Request) -> Response:
        content = await _content(request)
        code, excerpt, condition = self._stimulus(content)
        score = _whole(content, "score", 0, 100)
        if excerpt != self.study.training:
            self.store.rate(code, excerpt, condition, score)
        return JSONResponse({"stored": True})

    async def finish(self, request: Request) -> Response:
        """The listener leaves a page: refused while a rating of it is missing."""
        content = await _content(request)
        code = _text(content, "code")
        if not self.store.known(code):
            raise HTTPException(404, f"The code {code} is not known here.")
        excerpt = self._excerpt(code, _whole(content, "number", 0, len(self.study.excerpts)))
        if excerpt == self.study.training:
            self.store.train(code)
        else:
            rated = {rating.condition for rating in self.store.ratings(code) if rating.excerpt == excerpt}
            if missing := len(set(self.study.conditions) - rated):
                raise HTTPException(409, f"{missing} of the recordings on this page are not rated yet.")
            self.store.finish(code, excerpt)
        return JSONResponse({"stored": True})

    async def prefer(self, request: Request) -> Response:
        content = await _content(request)
        code, excerpt, preferred = self._stimulus(content)
        pair = self.study.pair(code, excerpt)
        if preferred not in pair:
            raise HTTPException(404, "This stimulus is not one of the pair.")
        over = next(name for name in pair if name != preferred)
        self.store.prefer(code, excerpt, preferred, over, bool(content.get("tie")))
        return JSONResponse({"stored": True})

    async def audio(self, request: Request) -> Response:
        code, token = request.path_params["code"], request.path_params["token"]
        part = request.path_params["part"]
        excerpt = self._excerpt(code, int(part) if part.isdecimal() else -1)
        condition = "reference" if token == "open" else self.study.condition(code, excerpt, token)
        if condition is None:
            raise HTTPException(404, "There is no such recording.")
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


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise HTTPException(400, f"{key} is missing.")
    return value


def _whole(content: dict[str, Any], key: str, low: int, high: int) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise HTTPException(400, f"{key} has to be a whole number from {low} to {high}.")
    return value


def serve(folder: Path, host: str, port: int) -> None:
    study, store = load_study(folder), Store(folder / DATABASE)
    print(f"http://{host}:{port} - answers go to {folder / DATABASE}", flush=True)
    try:
        uvicorn.run(Server(study, store).app(), host=host, port=port, log_level="warning")
    finally:
        store.close()


def report(folder: Path) -> Path:
    """Writes the tables as CSV, and `analysis.json`, `.md` and `.png`."""
    study, store = load_study(folder), Store(folder / DATABASE)
    try:
        export(store, folder)
        ratings, preferences = store.ratings(), store.preferences()
    finally:
        store.close()
    if not ratings:
        raise ValueError(f"{folder / DATABASE} holds no ratings yet")
    system = None if study.preference is None else study.preference[0]
    found = analyze(ratings, preferences, study.genres, system)
    with atomic_path(folder / "analysis.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
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
