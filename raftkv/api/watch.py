"""etcdserverpb.Watch: streams of changes, as the hub queues them.

A stream has one task that reads its requests. What it is told leaves with what others are told, in one turn of the loop
for all of them; when its client has no room, the call's own task sends what waits. A client that does not read holds up
its own two tasks and nobody else: its queue is bounded, and its requests wait with it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

from raftkv import errors
from raftkv.api.kv import decode
from raftkv.auth.caller import NOBODY
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Framed, Incoming, Method
from raftkv.server.server import Server
from raftkv.status import GO_NAMES, Code
from raftkv.watch import SEND_BYTES, WatchStream, span

TURN_STREAMS = 500
"""How many streams are sent their answers before others have their turn; a few milliseconds."""
_GOLDEN = 0.618034


class WatchService:
    """Watch."""

    def __init__(self, server: Server, *, progress_seconds: float) -> None:
        """`progress_seconds` is how often a quiet watcher that asked for it hears how far the store is."""
        self._server = server
        self._progress_seconds = progress_seconds
        self._spread = 0.0
        self._ready: deque[_Stream] = deque()

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        return {"/etcdserverpb.Watch/Watch": Method.bidi(self.watch)}

    async def watch(self, requests: Incoming, context: Context) -> AsyncIterator[Framed]:
        """Create, cancel and ask for progress as the client says; send what its watchers are told."""
        stream = _Stream(self._server, requests, context, self._interval(), self._due)
        try:
            while True:
                yield await stream.answers()
        finally:
            stream.close()

    def _due(self, stream: "_Stream") -> None:
        """Have a stream's answers sent in the next turn, together with those of others."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._ready.append(stream)

    def _deliver(self) -> None:
        for _ in range(min(len(self._ready), TURN_STREAMS)):
            self._ready.popleft().deliver()
        if self._ready:
            asyncio.get_running_loop().call_soon(self._deliver)

    def _interval(self) -> float:
        """Up to a tenth longer, differently for each stream: those made at one moment do not report at one moment."""
        self._spread = (self._spread + _GOLDEN) % 1
        return self._progress_seconds * (1 + self._spread / 10)


class _Stream:
    """A stream of the hub between a client's requests and answers."""

    def __init__(
        self,
        server: Server,
        requests: AsyncIterator[bytes],
        context: Context,
        interval: float,
        due: "Callable[[_Stream], None]",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._context = context
        self._user = ""
        """Who created the watchers, when it was last asked."""
        server.authority.watchers[self._check_again] = None
        self._interval = interval
        self._counted = 0
        self._waiting = asyncio.Event()
        self._room = asyncio.Event()
        self._watches: WatchStream = server.hub.open(partial(due, self) if context.push else self._waiting.set)
        self._timer = self._loop.call_later(interval, self._progress)
        self._reader: asyncio.Task[None] | None = self._loop.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._waiting.set())

    async def answers(self) -> Framed:
        """Wait for answers; what the client is to be sent next.

        Raises:
            StatusError: the client sent what is no request.
        """
        while not (data := self._watches.take()):
            await self._waiting.wait()
            self._waiting.clear()
            if self._reader is not None and self._reader.done():
                # A client that only stops asking still hears of its watchers.
                self._reader.result()
        return self._framed(data)

    def deliver(self) -> None:
        """Send what waits at once, if the client has room for all of it; else the call's task does, when it has."""
        watches, push = self._watches, self._context.push
        if push is not None and 0 < watches.queued_bytes <= min(push.room(), SEND_BYTES):
            push(self._framed(watches.take()))
        if watches.queued_bytes:
            self._waiting.set()

    def _framed(self, data: bytes) -> Framed:
        self._room.set()
        before, self._counted = self._counted, self._watches.answers
        return Framed(data, self._counted - before)

    def close(self) -> None:
        """Forget the watchers and stop reading."""
        self._timer.cancel()
        if self._reader is not None:
            self._reader.cancel()
            # Else its cancellation would hold this, and both wait for the collector.
            self._reader = None
        self._server.authority.watchers.pop(self._check_again, None)
        self._watches.close()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            request = decode(rpc_pb2.WatchRequest, data)
            while self._watches.full:
                self._room.clear()
                await self._room.wait()
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                refusal = await self._refusal(request.create_request) if self._server.auth.enabled else None
                if refusal is None:
                    code = self._watches.create(request.create_request)
                else:
                    code = refusal.code
                    self._watches.refuse(_reason(refusal))
                self._note(request, code)
            elif kind == "cancel_request":
                self._note(request, Code.OK)
                self._watches.cancel(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._watches.request_progress()

    def _note(self, request: rpc_pb2.WatchRequest, code: Code) -> None:
        if self._context.note is not None:
            self._context.note(request, code)

    async def _refusal(self, request: rpc_pb2.WatchCreateRequest) -> errors.EtcdError | None:
        """Why the caller must not watch this interval; None: it may."""
        try:
            try:
                await self._check(request)
            except errors.PermissionDenied:
                # The right may have been granted a moment ago, elsewhere. One that was taken is noticed when it comes.
                await self._server.linearizable()
                await self._check(request)
        except errors.EtcdError as error:
            return error
        return None

    async def _check(self, request: rpc_pb2.WatchCreateRequest) -> None:
        server = self._server
        context = self._context
        caller = await server.authority.identify(context.metadata, context.certificate_user) or NOBODY
        self._user = caller.user
        context.caller = caller
        server.auth.check_read(caller, span(request))

    def _check_again(self) -> None:
        """Users or roles have changed: end the watchers that would not be created any more."""
        auth = self._server.auth
        if not auth.enabled:
            return
        for watcher in list(self._watches.watchers.values()):
            try:
                if not self._user:
                    raise errors.UserEmpty
                if not auth.rights_of(self._user).may_read(watcher.span):
                    raise errors.PermissionDenied
            except errors.EtcdError as error:
                self._watches.cancel(watcher.id, _reason(error))

    def _progress(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._progress)
        self._watches.periodic_progress()


def _reason(error: errors.EtcdError) -> str:
    """An error as text, as Go's gRPC writes it: clients compare it."""
    return f"rpc error: code = {GO_NAMES[error.code]} desc = {error.message}"
