"""Plain HTTP on the client port: /version and /health, as etcd answers them."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from raftkv import ETCD_API_VERSION, __version__
from raftkv.server.server import Server

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def http_app(server: Server) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Build the ASGI application for requests that are not gRPC."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, content_type, body = _answer(server, scope["method"], scope["path"])
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _answer(server: Server, method: str, path: str) -> tuple[int, bytes, bytes]:
    if path not in ("/version", "/health"):
        return 404, b"text/plain; charset=utf-8", b"404 page not found\n"
    if method not in ("GET", "HEAD"):
        return 405, b"text/plain; charset=utf-8", b"Method Not Allowed\n"
    if path == "/version":
        versions = {"etcdserver": ETCD_API_VERSION, "etcdcluster": ETCD_API_VERSION, "raftkv": __version__}
        return 200, b"application/json", json.dumps(versions, separators=(",", ":")).encode()
    healthy = bool(server.node.leader) and not server.failed.done()
    health = {"health": "true" if healthy else "false", "reason": "" if healthy else "RAFT NO LEADER"}
    return 200 if healthy else 503, b"application/json", json.dumps(health, separators=(",", ":")).encode()
