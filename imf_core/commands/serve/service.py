"""The web application of `imf serve`, without the process and the socket.

One thread owns the model; requests wait for it in a queue, and none is rejected. Those that wait are answered together: a model
reads its matrices once for 32 questions as for one. That thread also looks up names and encodes answers, so that the event loop
stays free for other clients.

Names may hold any bytes. They are sent as JSON escapes, which are ASCII; the usual JSON responses and validators refuse them.
"""

from __future__ import annotations

import asyncio
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import imf_core
from imf_core.answers import Known
from imf_core.commands.serve.request import SCHEMA, Asked, Limits, read_request
from imf_core.errors import ImfError
from imf_core.predict import MOST, Predictor

_NAMES = 100  # names in a listing, unless asked for more


def build_app(predictor: Predictor, limits: Limits, hosts: Sequence[str]) -> Starlette:
    """The application. FastAPI describes it (/openapi.json); Starlette answers, with less work on each request.

    Args:
        predictor: answers the questions; only one thread uses it from now on.
        limits: of a request.
        hosts: accepted values of the Host header (`*`: any), and of the host in Origin. They keep out web pages whose own name
            points here (DNS rebinding), and those of other sites.
    """
    desk = _Desk(predictor, limits)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desk.close()

    # No documentation page: it would load scripts from other hosts.
    api = FastAPI(title="IMF Search", version=imf_core.__version__, docs_url=None, redoc_url=None)

    async def refused(_: Request, error: ImfError) -> Response:
        return _json({"error": error.problem, "what_to_do": error.remedy}, int(error.facts.get("status", 422)))

    async def not_here(request: Request, error: HTTPException) -> Response:
        problem = f"{request.method} {request.url.path}: {error.detail}"
        remedy = "POST /predict; GET /health, /about, /entities, /relations, /openapi.json"
        return _json({"error": problem, "what_to_do": remedy}, error.status_code, dict(error.headers or {}))

    @api.post("/predict", openapi_extra=SCHEMA)
    async def predict(request: Request) -> Response:
        """The k most plausible answers to each question, in order, and the number of known facts left out."""
        _refuse_other_sites(request, hosts)
        try:
            body = await _body(request, limits.body)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        return Response(await desk.answer(read_request(body, limits)), media_type="application/json")

    @api.get("/health")
    async def health(_: Request) -> Response:
        """That the server runs, and how many requests wait for the model."""
        return _json({"status": "ok", "waiting": desk.waiting})

    @api.get("/about")
    async def about(_: Request) -> Response:
        """The model, its counts and figures, and the limits of a request."""
        return Response(desk.about, media_type="application/json")

    @api.get("/entities", openapi_extra=_LISTING)
    async def entities(request: Request) -> Response:
        """Entities whose names begin with `prefix`, in the order of the alphabet, and how many there are."""
        return _json(desk.entities.listed(request, "entities", limits.names))

    @api.get("/relations", openapi_extra=_LISTING)
    async def relations(request: Request) -> Response:
        """Relations whose names begin with `prefix`, in the order of the alphabet, and how many there are."""
        return _json(desk.relations.listed(request, "relations", limits.names))

    async def description(_: Request) -> Response:
        return _json(api.openapi())

    handlers: dict[Any, Any] = {ImfError: refused, HTTPException: not_here}
    app = Starlette(
        routes=[
            *(Route(route.path, route.endpoint, methods=sorted(route.methods or ()))
              for route in api.routes if isinstance(route, APIRoute)),
            Route("/openapi.json", description),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers=handlers, lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


@dataclass
class _Batch:
    """Requests that are answered together: all want as many answers and the same of known facts.

    Args:
        asked: the requests; more may join until the model's thread begins with them.
        answered: an encoded answer or a refusal for each.
    """

    asked: list[Asked] = field(default_factory=list)
    answered: asyncio.Future[list[bytes | ImfError]] | None = None

    def has_room(self, asked: Asked) -> bool:
        """Whether a request may join: one is always taken, others up to as many questions as a block of the model."""
        return sum(len(other.questions) for other in [*self.asked, asked]) <= MOST


class _Desk:
    """The model, its thread, and the answers that do not need it: names and facts."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._open: dict[tuple[int, Known], _Batch] = {}  # batches that the thread has not begun
        self._lock = Lock()  # of `_open`
        self.waiting = 0
        loaded = predictor.checkpoint
        self.entities, self.relations = _Names(loaded.entities.names), _Names(loaded.relations.names)
        self.about = _encoded(_about(predictor, limits))

    async def answer(self, asked: Asked) -> bytes:
        """Queue a request for the model's thread and wait for the encoded answers.

        Raises:
            ImfError: a question cannot be answered; the requests beside it are.
        """
        kind = asked.k, asked.known
        with self._lock:
            batch = self._open.get(kind)
            if batch is None or not batch.has_room(asked):
                batch = self._open[kind] = _Batch()
            number = len(batch.asked)
            batch.asked.append(asked)
        if batch.answered is None:
            batch.answered = asyncio.get_running_loop().run_in_executor(self._thread, self._answer, kind, batch)
        self.waiting += 1
        try:
            answer = (await asyncio.shield(batch.answered))[number]  # a request that is cancelled takes none with it
        finally:
            self.waiting -= 1
        if isinstance(answer, ImfError):
            raise answer
        return answer

    def _answer(self, kind: tuple[int, Known], batch: _Batch) -> list[bytes | ImfError]:
        with self._lock:
            if self._open.get(kind) is batch:
                del self._open[kind]
        (k, known), checked = kind, [(asked, self._refusal(asked)) for asked in batch.asked]
        questions = [question for asked, refusal in checked if refusal is None for question in asked.questions]
        counts, answered = iter(self._predictor.num_known(questions)), self._predictor.answers(questions, k, known)
        return [
            refusal or _encoded({"results": [
                {
                    **vars(question), "answers": [vars(answer) for answer in next(answered)],
                    "left_out": next(counts) * (known is Known.DROP),
                }
                for question in asked.questions
            ]})
            for asked, refusal in checked
        ]

    def _refusal(self, asked: Asked) -> ImfError | None:
        """What is wrong with the names of a request; None if nothing is."""
        for number, question in enumerate(asked.questions):
            try:
                self._predictor.ids(question)
            except ImfError as error:
                return type(error)(f"questions[{number}]: {error.problem}", remedy=error.remedy)
        return None

    def close(self) -> None:
        """Accept no more requests; the current one is still answered."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Names:
    """Names in alphabetical order, in which those with a common prefix follow one another."""

    def __init__(self, names: Sequence[str]) -> None:
        self._ordered = sorted(names)

    def listed(self, request: Request, kind: str, most: int) -> dict[str, Any]:
        """The first names with the request's prefix, `limit` of them (at most `most`), and the number of all of them.

        Raises:
            ImfError: the limit is no whole number in 1..most.
        """
        # Not `request.query_params`: it replaces undecodable bytes, which names may contain.
        query = request.scope["query_string"].decode("latin-1")
        given = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
        prefix, limit = given.get("prefix", ""), given.get("limit", str(min(_NAMES, most)))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= most):
            raise ImfError(f"limit is {limit!r}", remedy=f"ask for 1 to {most:,} names; a longer prefix narrows the list down")

        def beginning(name: str) -> str:
            return name[: len(prefix)]

        low = bisect_left(self._ordered, prefix, key=beginning)
        high = bisect_right(self._ordered, prefix, key=beginning)
        return {kind: self._ordered[low : min(high, low + int(limit))], "total": high - low}


def _refuse_other_sites(request: Request, hosts: Sequence[str]) -> None:
    """A page of another site can send what forms send without being asked; JSON it cannot.

    Raises:
        ImfError: the body is not declared as JSON (415), or a browser says that the page is from elsewhere (403).
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ImfError(
            f"the body is declared as {kind or 'nothing'}", remedy="send the header Content-Type: application/json", status=415
        )
    origin = request.headers.get("origin")
    if origin is None or "*" in hosts:
        return
    host = urlsplit(origin).netloc.rpartition("@")[2].rpartition(":")[0] or urlsplit(origin).netloc
    patterns = [name.removeprefix("*") for name in hosts if name.startswith("*.")]
    if host not in hosts and not any(host.endswith(pattern) for pattern in patterns):
        raise ImfError(f"a page of {origin} may not ask", remedy="start with --allow-host NAME for its host", status=403)


async def _body(request: Request, most: int) -> bytes:
    """The body of a request; reading stops as soon as it is too long.

    Raises:
        ImfError: it is longer than `most` bytes (status 413).
    """
    declared = request.headers.get("content-length", "")
    parts, size = [], int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
    if size <= most:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                break
            parts.append(part)
    if size > most:
        raise ImfError(
            f"the body is longer than {most:,} bytes", remedy="ask fewer questions at a time, or start with --max-body-kib",
            status=413,
        )
    return b"".join(parts)


def _about(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    loaded, model = predictor.checkpoint, predictor.checkpoint.model
    return {
        "model": "IMF", "checkpoint": loaded.path.resolve().name, "version": imf_core.__version__,
        **predictor.about(), "entities": model.num_entities, "relations": model.num_relations,
        "limits": {"questions": limits.questions, "k": limits.k, "body_bytes": limits.body, "names": limits.names},
    }


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoded(value), status, headers, "application/json")


def _encoded(value: Any) -> bytes:
    """ASCII JSON; NaN and infinities become null."""
    try:
        return json.dumps(value, allow_nan=False).encode("ascii")
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_LISTING: dict[str, Any] = {
    "parameters": [
        {"name": "prefix", "in": "query", "schema": {"type": "string", "default": ""}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": _NAMES}},
    ]
}
