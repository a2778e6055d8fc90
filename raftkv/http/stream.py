"""One request and its response: a stream of an HTTP/2 connection, as ASGI sees it."""

import asyncio
from collections import deque
from collections.abc import Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any

from raftkv.http.asgi import Headers, Take
from raftkv.http.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    constant_block,
    header_block,
    header_frames,
)
from raftkv.http.requests import Request

if TYPE_CHECKING:
    from raftkv.http.connection import Connection

UNSENT_BYTES = 256 << 10
"""The application waits while more than this of its response is kept for the client's windows."""
TURN_BYTES = 512 << 10
"""So much that leaves at once is enough for one turn of the loop: half a thousandth of a second."""

_OK = header_block(((b":status", b"200"),))
_FAILED = ((b":status", b"500"), (b"content-length", b"0"))
_BODILESS = frozenset((204, 304))
_DISCONNECT = {"type": "http.disconnect"}


class Stream:
    """A request that arrives and a response that leaves.

    Invariants:
    1. `unsent` holds, in order, what windows or the socket do not let through yet; `_tail`, the frame that ends the
       response, follows it.
    2. Once `closed`, nothing is written and nothing received is kept.
    """

    __slots__ = (
        "_at_once",
        "_bodiless",
        "_body",
        "_connection",
        "_head",
        "_room",
        "_tail",
        "_take",
        "_told",
        "_trailers",
        "_waiting",
        "closed",
        "credit",
        "id",
        "missing",
        "owed",
        "queued",
        "receivable",
        "request_ended",
        "started",
        "task",
        "unread",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, connection: "Connection", stream_id: int, receivable: int, request: Request) -> None:
        """`receivable` is how much may be received at first."""
        self._connection = connection
        self.id = stream_id
        self.task: asyncio.Future[Any] | None = None
        """What is cancelled when the client goes away."""
        self.closed = False
        # The request
        self.receivable = receivable
        self.request_ended = False
        self.missing = request.content_length
        """How much of the body is still to come, if that is known."""
        self.unread = 0
        self.owed = 0
        """Bytes the application has read and the client was not given back yet."""
        self._body: list[bytes] = []
        self._told = False
        self._take: Take | None = None
        self._waiting: asyncio.Future[None] | None = None
        # The response
        self.credit = 0
        """How much more than the client's initial window may be sent, or less."""
        self.started = False
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.queued = False
        self._at_once = 0
        """What was sent since the application had to wait."""
        self._head: Headers | None = None
        self._bodiless = request.head
        self._trailers: Headers | None = None
        """Those so far, if any were announced."""
        self._tail = b""
        self._room: asyncio.Future[None] | None = None

    # The request

    def arrived(self, data: bytes) -> None:
        """Keep a piece of the request's body, or hand it over."""
        if data and self._take is not None:
            self._connection.read(self, len(data))
            self._take(data, False)
        elif data:
            self._body.append(data)
            self.unread += len(data)
            self._wake()

    def end_request(self) -> None:
        """Note that the request is complete."""
        self.request_ended = True
        if self._take is not None:
            self._take(b"", True)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def feed(self, take: Take) -> None:
        """Have `take` called with each piece of the body, and whether it is the last, in the turn that brings it.

        Afterwards `receive` waits for nothing but the client's departure. `take` must not raise.
        """
        self._take = take
        if self._body or (self.request_ended and not self._told):
            event = self._next()
            take(event["body"], not event["more_body"])
        self._told = True

    @property
    def body(self) -> bytes:
        """The body, if it is here whole and nothing was read of it; else nothing."""
        return b"".join(self._body) if self.request_ended and not self._told else b""

    def waits_for(self, future: "asyncio.Future[Any]") -> None:
        """Note that the body is read, and what is to be cancelled should the client go away."""
        self._next()
        self.task = future

    def run(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run what is left to do in a task."""
        self._connection.run(self, rest)

    def over(self) -> None:
        """Note that the application is done with this request."""
        self._connection.over(self)

    async def receive(self) -> MutableMapping[str, Any]:
        """Wait for the next event of the request, as ASGI has them."""
        while not self.closed:
            if (self._body or self.request_ended) and not self._told:
                return self._next()
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return _DISCONNECT

    def _next(self) -> MutableMapping[str, Any]:
        pieces, self._body = self._body, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._told = self.request_ended
        if data:
            self.unread -= len(data)
            self._connection.read(self, len(data))
        return {"type": "http.request", "body": data, "more_body": not self._told}

    # The response

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send the next event of the response, as ASGI has them; wait while too much waits for the client.

        After much that did not wait others have their turn.

        Raises:
            ConnectionError: the client is gone, or has the whole response.
            RuntimeError: the event does not come next.
        """
        if self.closed:
            raise ConnectionResetError("the client is gone")
        kind = event["type"]
        if self._tail or (self.started or self._head is not None) == (kind == "http.response.start"):
            raise RuntimeError(f"{kind} does not come next in a response")
        if kind == "http.response.body":
            body, more = event.get("body", b""), event.get("more_body", False)
            self._send_body(body, more)
            self._at_once += len(body)
            if self.unsent_bytes > UNSENT_BYTES and not self._tail:
                self._at_once = 0
                await self._drained()
            elif more and self._at_once >= TURN_BYTES:
                # A client that takes all there is would have the loop to itself.
                self._at_once = 0
                await asyncio.sleep(0)
        elif kind == "http.response.start":
            status = event["status"]
            self._head = ((b":status", b"%d" % status), *event.get("headers", ()))
            self._bodiless = self._bodiless or status in _BODILESS
            self._trailers = () if event.get("trailers", False) else None
        elif kind == "http.response.trailers" and self._trailers is not None:
            self._trailers = (*self._trailers, *event.get("headers", ()))
            if not event.get("more_trailers", False):
                self._send_trailers(self._trailers)
        else:
            raise RuntimeError(f"{kind} does not come next in a response")

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._bodiless:
            body = b""
        if body or more or self._trailers is None:
            self._begin()
            if body:
                self._connection.send(self, body)
        if not more and self._trailers is None:
            self._end(HEAD.pack(0, 0, DATA, END_STREAM, self.id))

    def _send_trailers(self, headers: Headers) -> None:
        # A response that is a status alone is one block of headers: "trailers-only", as gRPC calls it.
        if self._head is not None:
            headers, self._head = (*self._head, *headers), None
            self.started = True
        self._end(self._block(headers, END_STREAM))

    def fail(self) -> None:
        """Answer for an application that did not."""
        self._head = None
        self.started = True
        self._end(self._block(_FAILED, END_STREAM))

    def room(self) -> int:
        """How many bytes of the body of a response that has begun would leave at once."""
        return 0 if self.closed or self.unsent or not self.started else self._connection.room(self)

    def write(self, body: bytes) -> None:
        """Send a piece of the body of a response that has begun; what there is no room for is kept."""
        if not self.closed:
            self._connection.send(self, body)

    def answer(self, headers: Headers, body: bytes, trailers: Headers) -> bool:
        """Send a whole response of status 200, if nothing holds it; whether that was so, or the client is gone."""
        if self.closed:
            return True
        size = len(body)
        if self._head is not None or self.started or not self._connection.claim(self, size):
            return False
        head = self._connection.block_prefix() + _OK + constant_block(headers)
        tail = constant_block(trailers)
        pack, stream = HEAD.pack, self.id
        self._connection.write(
            b"".join(
                (
                    pack(0, len(head), HEADERS, END_HEADERS, stream),
                    head,
                    pack(0, size, DATA, 0, stream),
                    body,
                    pack(0, len(tail), HEADERS, END_HEADERS | END_STREAM, stream),
                    tail,
                )
            )
        )
        self._connection.answered(self)
        return True

    def _begin(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self.started = True
            self._connection.write(self._block(head, 0))

    def _block(self, headers: Headers, flags: int) -> bytes:
        return header_frames(self._connection.block_prefix() + header_block(headers), self.id, flags)

    def _end(self, tail: bytes) -> None:
        if self.unsent:
            self._tail = tail
            self._connection.await_taking(self)
        else:
            self._connection.write(tail)
            self._connection.answered(self)

    def sent(self) -> None:
        """Go on after some of what waited has left."""
        if self._room is not None and self.unsent_bytes <= UNSENT_BYTES // 2 and not self._room.done():
            self._room.set_result(None)
        if self._tail and not self.unsent:
            self._end(self._tail)

    async def _drained(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room
        if self.closed:
            raise ConnectionResetError("the client is gone")

    # The end

    @property
    def complete(self) -> bool:
        """Whether there is nothing more to come from the application."""
        return self.closed or bool(self._tail)

    def close(self) -> None:
        """Drop what was received and what waits to be sent; the application hears that the client is gone."""
        self.closed = True
        self._body = []
        self.unread = 0
        self.unsent.clear()
        self._connection.load.bytes -= self.unsent_bytes
        self.unsent_bytes = 0
        self._wake()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
