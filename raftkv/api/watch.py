"""etcdserverpb.Watch: streams of changes, as the hub queues them.

A stream has one task that reads its requests and one, the call's own, that sends what waits. A client that does not
read holds up its own two tasks and nobody else: its queue is bounded, and its requests wait with it.
"""

import asyncio
from collections.abc import AsyncIterator

from raftkv.api.kv import decode
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context, Framed, Method
from raftkv.server.server import Server
from raftkv.watch import WatchStream

_GOLDEN = 0.618034


class WatchService:
    """Watch."""

    def __init__(self, server: Server, *, progress_seconds: float) -> None:
        """`progress_seconds` is how often a quiet watcher that asked for it hears how far the store is."""
        self._server = server
        self._progress_seconds = progress_seconds
        self._spread = 0.0

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        return {"/etcdserverpb.Watch/Watch": Method.bidi(self.watch)}

    async def watch(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Framed]:
        """Create, cancel and ask for progress as the client says; send what its watchers are told."""
        stream = _Stream(self._server, requests, self._interval())
        try:
            while True:
                yield await stream.answers()
        finally:
            stream.close()

    def _interval(self) -> float:
        """Up to a tenth longer, differently for each stream: those made at one moment do not report at one moment."""
        self._spread = (self._spread + _GOLDEN) % 1
        return self._progress_seconds * (1 + self._spread / 10)


class _Stream:
    """A stream of the hub between a client's requests and answers."""

    def __init__(self, server: Server, requests: AsyncIterator[bytes], interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval = interval
        self._counted = 0
        self._waiting = asyncio.Event()
        self._room = asyncio.Event()
        self._watches: WatchStream = server.hub.open(self._waiting.set)
        self._timer = self._loop.call_later(interval, self._progress)
        self._reader = self._loop.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._waiting.set())

    async def answers(self) -> Framed:
        """Wait for answers; what the client is to be sent next.

        Raises:
            StatusError: the client sent what is no request.
        """
        while not (data := self._watches.take()):
            await self._waiting.wait()
            self._waiting.clear()
            if self._reader.done():
                # A client that only stops asking still hears of its watchers.
                self._reader.result()
        self._room.set()
        before, self._counted = self._counted, self._watches.answers
        return Framed(data, self._counted - before)

    def close(self) -> None:
        """Forget the watchers and stop reading."""
        self._timer.cancel()
        self._reader.cancel()
        self._watches.close()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            request = decode(rpc_pb2.WatchRequest, data)
            while self._watches.full:
                self._room.clear()
                await self._room.wait()
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                self._watches.create(request.create_request)
            elif kind == "cancel_request":
                self._watches.cancel(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._watches.request_progress()

    def _progress(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._progress)
        self._watches.periodic_progress()
