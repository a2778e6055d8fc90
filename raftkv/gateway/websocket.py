"""WebSockets on the gateway's paths, for browsers: requests while answers arrive, which HTTP/1.1 cannot.

As with etcd's, each message of the client is a piece of the body of a POST, and each line of the answer a message to
the client; the socket is closed behind the last one. A token comes as sub-protocol: `Bearer, TOKEN`.
"""

from collections.abc import Iterable
from typing import Any

from raftkv.gateway.text import BadJson, Splitter
from raftkv.http.asgi import ASGIApp, Receive, Scope, Send

_NORMAL = 1000
_BEARER = "Bearer"


async def serve(
    post: ASGIApp, scope: Scope, receive: Receive, send: Send, *, streams: bool, max_body_bytes: int
) -> None:
    """Serve one socket by a POST to its path.

    `streams`: the body has an end only when the client leaves; otherwise it ends with its first value, which may come
    in several messages and has at most `max_body_bytes`.
    """
    await receive()
    offered = scope.get("subprotocols", ())
    chosen = _BEARER if _BEARER in offered else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
    answer = _Answer(send)
    request = {**scope, "type": "http", "method": "POST", "scheme": "http", "headers": list(_headers(scope, offered))}
    body = _Body(receive, None if streams else Splitter(max_body_bytes))
    await post(request, body.receive, answer.take)


def _headers(scope: Scope, offered: Iterable[str]) -> Iterable[tuple[bytes, bytes]]:
    token = [protocol for protocol in offered if protocol != _BEARER]
    if token and _BEARER in offered:
        yield b"authorization", f"{_BEARER} {token[0]}".encode("latin-1")
    for name, value in scope["headers"]:
        if name in (b"origin", b"referer", b"authorization"):
            yield name, value


class _Body:
    """The messages of a client as the body of a request."""

    def __init__(self, receive: Receive, values: Splitter | None) -> None:
        """`values` finds the end; None: there is none."""
        self._receive = receive
        self._values = values

    async def receive(self) -> dict[str, Any]:
        """The next event of the request."""
        event = await self._receive()
        if event["type"] != "websocket.receive":
            return {"type": "http.disconnect"}
        body = (event.get("bytes") or (event.get("text") or "").encode()) + b"\n"
        return {"type": "http.request", "body": body, "more_body": not self._ended_by(body)}

    def _ended_by(self, body: bytes) -> bool:
        try:
            return self._values is not None and any(True for _ in self._values.feed(body))
        except BadJson:
            return True


class _Answer:
    """The lines of a response as messages to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._rest = b""

    async def take(self, event: Any) -> None:
        """Take an event of the response."""
        if event["type"] != "http.response.body":
            return
        *lines, self._rest = (self._rest + event.get("body", b"")).split(b"\n")
        if not event.get("more_body", False) and self._rest:
            lines.append(self._rest)
        for line in lines:
            await self._send({"type": "websocket.send", "text": line.decode()})
        if not event.get("more_body", False):
            await self._send({"type": "websocket.close", "code": _NORMAL})
