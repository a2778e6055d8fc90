"""Plain HTTP on a port: pages by path, the JSON gateway below /v3/, and the CORS headers of etcd."""

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from raftkv import ETCD_API_VERSION, __version__
from raftkv.http.asgi import CERTIFICATE_USER, ASGIApp, Receive, Scope, Send
from raftkv.rpc.held import drain
from raftkv.web.checks import Checks
from raftkv.web.stacks import stacks

logger = logging.getLogger(__name__)

Query = Mapping[str, list[str]]

_CORS = [
    (b"access-control-allow-headers", b"accept, content-type, authorization"),
    (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE"),
]
_PLAIN = b"text/plain; charset=utf-8"
_METRICS = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes
    content_type: bytes = _PLAIN
    allow: bytes = b""
    plain: bool = False
    """Whether it is never to be taken for a document, as what is not a success never is."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Its headers."""
        headers = [(b"content-length", b"%d" % len(self.body))]
        if self.body:
            headers.append((b"content-type", self.content_type))
        if self.status >= 400 or self.plain:
            headers.append((b"x-content-type-options", b"nosniff"))
        if self.allow:
            headers.append((b"allow", self.allow))
        return headers


_NOT_FOUND = Answer(404, b"404 page not found\n")
_NAME_IGNORED = Answer(
    400, b"CommonName of client sending a request against gateway will be ignored and not used as expected\n"
)
_WRONG_METHOD = Answer(405, b"Method Not Allowed\n", allow=b"GET")


@dataclass(frozen=True, slots=True)
class Page:
    """What is served at a path; with `below` also at the paths below it, whose rest it is given."""

    answer: Callable[[Query, str], Awaitable[Answer]]
    any_method: bool = False
    below: bool = False


Pages = Mapping[str, Page]


class Front:
    """Serves pages, and what begins with /v3/ through the gateway."""

    def __init__(
        self,
        pages: Pages,
        *,
        gateway: ASGIApp | None = None,
        origins: Collection[str] | None = None,
        users_matter: Callable[[], bool] = lambda: False,
    ) -> None:
        """`origins` are those whose pages a browser lets use this port; `*`: all; None: CORS is not spoken at all.

        While `users_matter`, the gateway refuses whom a certificate names, as etcd does: the name would not count.
        """
        self._users_matter = users_matter
        self._pages = pages
        self._gateway = gateway
        self._origins = None if origins is None else {origin.encode("latin-1") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await self._websocket(scope, receive, send)
            return
        if self._origins is not None:
            origin = self._allowed(dict(scope["headers"]).get(b"origin", b""))
            send = _with_cors(send, origin) if origin else send
            if scope["method"] == "OPTIONS":
                await drain(receive)
                await _send(send, Answer(200, b""))
                return
        if self._gateway is not None and (path := _gateway_path(scope["path"])) is not None:
            if scope.get(CERTIFICATE_USER) and self._users_matter():
                await drain(receive)
                await _send(send, _NAME_IGNORED)
                return
            await self._gateway({**scope, "path": path, CERTIFICATE_USER: ""}, receive, send)
            return
        await drain(receive)
        await _send(send, await self._answer(scope))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _gateway_path(scope["path"])
        ignored = scope.get(CERTIFICATE_USER) and self._users_matter()
        if self._gateway is not None and path is not None and not ignored:
            await self._gateway({**scope, "path": path, CERTIFICATE_USER: ""}, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})

    def _allowed(self, origin: bytes) -> bytes:
        """What to say about an origin; nothing: it is none of ours."""
        assert self._origins is not None
        if b"*" in self._origins:
            return b"*"
        return origin if origin in self._origins else b""

    async def _answer(self, scope: Scope) -> Answer:
        path, rest = scope["path"], ""
        page = self._pages.get(path)
        if page is None:
            path, _, rest = path.rpartition("/")
            page = self._pages.get(path)
            if page is None or not page.below or not rest:
                return _NOT_FOUND
        if scope["method"] != "GET" and not page.any_method:
            return _WRONG_METHOD
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        return await page.answer(query, rest)


def metrics_pages(checks: Checks, metrics: Callable[[], bytes]) -> dict[str, Page]:
    """Build the pages that monitoring needs."""

    async def metrics_page(query: Query, rest: str) -> Answer:
        return Answer(200, metrics(), _METRICS)

    return {
        "/metrics": Page(metrics_page, any_method=True),
        "/health": Page(partial(_health, checks)),
        "/livez": Page(partial(_checks, checks, "livez"), below=True),
        "/readyz": Page(partial(_checks, checks, "readyz"), below=True),
    }


def client_pages(checks: Checks, metrics: Callable[[], bytes], *, debug: bool) -> dict[str, Page]:
    """Build the pages of the client port; `debug` adds the stacks."""
    pages = metrics_pages(checks, metrics)
    pages["/version"] = Page(_version)
    if debug:
        pages["/debug/stacks"] = Page(_stacks)
    return pages


async def _version(query: Query, rest: str) -> Answer:
    versions = {
        "etcdserver": ETCD_API_VERSION,
        "etcdcluster": ETCD_API_VERSION,
        "storage": ETCD_API_VERSION,
        "raftkv": __version__,
    }
    return Answer(200, _json(versions), b"application/json")


async def _stacks(query: Query, rest: str) -> Answer:
    return Answer(200, stacks().encode())


async def _health(checks: Checks, query: Query, rest: str) -> Answer:
    excluded = set(query.get("exclude", ()))
    reason = await checks.health(excluded, serializable=query.get("serializable", [""])[0] == "true")
    body = _json({"health": "false" if reason else "true", "reason": reason})
    return Answer(503, body + b"\n") if reason else Answer(200, body)


async def _checks(checks: Checks, kind: str, query: Query, rest: str) -> Answer:
    known = checks.live if kind == "livez" else checks.ready
    if rest:
        if rest not in known:
            return _NOT_FOUND
        names = [rest]
    else:
        names = _chosen(kind, list(known), query)
    outcome = await checks.run(kind, names)
    lines = [f"[-]{name} failed: {reason}\n" if reason else f"[+]{name} ok\n" for name, reason in outcome.items()]
    if any(outcome.values()):
        return Answer(503, ("".join(lines) + "\n").encode())
    return Answer(200, ("".join(lines if "verbose" in query else ()) + "ok\n").encode(), plain=True)


def _chosen(kind: str, known: list[str], query: Query) -> list[str]:
    """The checks that the query leaves: `allowlist` names the only ones, `exclude` takes some away."""
    allowed, excluded = query.get("allowlist", known), query.get("exclude", [])
    unknown = sorted({*allowed, *excluded} - {*known})
    if unknown:
        logger.warning("%s knows no check %s", kind, ", ".join(map(repr, unknown)))
    return [name for name in known if name in allowed and name not in excluded]


def _gateway_path(path: str) -> str | None:
    if path.startswith("/v3/"):
        return path
    return "/v3/" + path.removeprefix("/v3beta/") if path.startswith("/v3beta/") else None


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _with_cors(send: Send, origin: bytes) -> Send:
    told = [*_CORS, (b"access-control-allow-origin", origin)]

    async def with_cors(event: Any) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*told, *event.get("headers", ())]}
        await send(event)

    return with_cors


async def _send(send: Send, answer: Answer) -> None:
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers()})
        await send({"type": "http.response.body", "body": answer.body})
    except OSError:
        # The client is gone.
        return
