"""Following changes through disconnects: no gap, no repeat, and a clear end when history is gone.

The place of a watcher is the next revision it has not been told. It moves only behind a whole revision, so what a
broken connection cut off is asked for again, and what came twice is dropped. `Place` decides, without I/O.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

from raftkv import errors
from raftkv.client.errors import NotConnected, Refused, typed
from raftkv.client.login import RENEWALS, Login, metadata
from raftkv.client.requests import LEADER_METADATA
from raftkv.pb import rpc_pb2
from raftkv.status import GO_NAMES, Code

WATCH_PATH = "/etcdserverpb.Watch/Watch"
PAUSE_SECONDS = 0.1
"""Before a stream that broke is opened anew."""

_CODES = {name: code for code, name in GO_NAMES.items()}
_RESUMABLE = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.CANCELED, Code.UNKNOWN})


class WatchCompacted(Refused, errors.Compacted):
    """The history a watcher needs is gone: it must read the keys anew, and watch from there.

    `compact_revision`: the oldest revision that can still be watched. `response`: the server's last answer.
    """

    def __init__(self, response: rpc_pb2.WatchResponse) -> None:
        Refused.__init__(self, errors.Compacted.CODE, errors.Compacted.TEXT)
        self.response = response

    @property
    def compact_revision(self) -> int:
        return self.response.compact_revision

    def __reduce__(self) -> tuple[object, ...]:
        return WatchCompacted, (self.response,)


class Place:
    """What a watcher has been told, and what of an answer is new to it.

    Invariant: everything below `next_revision` was told, if it is not 0; nothing at or above it was.
    """

    def __init__(self, request: rpc_pb2.WatchCreateRequest) -> None:
        self._request = request
        self.next_revision = request.start_revision
        self._fragments: list[rpc_pb2.WatchResponse] = []

    def request(self) -> rpc_pb2.WatchRequest:
        """Begin anew, from here."""
        self._fragments.clear()
        wanted = rpc_pb2.WatchCreateRequest()
        wanted.CopyFrom(self._request)
        wanted.start_revision, wanted.fragment = self.next_revision, True
        return rpc_pb2.WatchRequest(create_request=wanted)

    def take(self, response: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse | None:
        """What of an answer is to be told: whole revisions, or progress; None: nothing yet.

        Raises:
            WatchCompacted, Refused: the watcher is over.
        """
        if response.canceled:
            raise _over(response)
        if response.created:
            self.next_revision = self.next_revision or response.header.revision + 1
            return None
        if response.fragment:
            self._fragments.append(response)
            return None
        if self._fragments:
            response = self._joined(response)
        if not response.events:
            if response.header.revision + 1 < self.next_revision:
                return None
            self.next_revision = response.header.revision + 1
            return response
        return self._new(response)

    def _joined(self, last: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse:
        whole = rpc_pb2.WatchResponse(header=last.header, watch_id=last.watch_id)
        for part in (*self._fragments, last):
            whole.events.extend(part.events)
        self._fragments.clear()
        return whole

    def _new(self, response: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse | None:
        if response.events[0].kv.mod_revision < self.next_revision:
            fresh = [event for event in response.events if event.kv.mod_revision >= self.next_revision]
            if not fresh:
                return None
            response = rpc_pb2.WatchResponse(header=response.header, watch_id=response.watch_id, events=fresh)
        self.next_revision = response.events[-1].kv.mod_revision + 1
        return response


def _over(response: rpc_pb2.WatchResponse) -> Refused:
    if response.compact_revision:
        return WatchCompacted(response)
    reason = response.cancel_reason or errors.WatchCanceled.TEXT
    # Refusals for who calls are worded as Go's gRPC words errors.
    head, _, reason = reason.rpartition(" desc = ")
    for kind in errors.EtcdError.__subclasses__():
        if reason == kind.TEXT:
            error = typed(Refused, kind.CODE, reason)
            assert isinstance(error, Refused)
            return error
    return Refused(_CODES.get(head.rpartition("code = ")[2], Code.INVALID_ARGUMENT), reason)


Connect = Callable[[], Awaitable[tuple[str, grpc.aio.Channel]]]
_Call = grpc.aio.StreamStreamCall[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


class AsyncWatch(AsyncIterator[rpc_pb2.WatchResponse]):
    """The changes of some keys, answer by answer: whole revisions in order, each once, whatever breaks in between.

    An answer without events is progress: everything up to its header's revision has been told. One task at a time
    waits for the next one; cancelled, it may ask again later.
    """

    def __init__(
        self, connect: Connect, lost: Callable[[str], None], request: rpc_pb2.WatchCreateRequest, login: Login
    ) -> None:
        """`connect` finds an endpoint and a ready channel, `lost` hears of one that failed."""
        self._connect = connect
        self._lost = lost
        self._place = Place(request)
        self._login = login
        self._token = ""
        self._renewals = 0
        self._call: _Call | None = None
        self._target = ""
        self._created = False
        """Whether the server of this stream has the watcher."""
        self._full: dict[str, Refused] = {}
        """Servers that had no room for it, of those asked since one had it last."""
        self._told: rpc_pb2.WatchResponse | None = None
        self._began = False
        self._closed = False

    @property
    def next_revision(self) -> int:
        """The first revision that was not told yet; 0: no server was reached so far."""
        return self._place.next_revision

    async def __aenter__(self) -> "AsyncWatch":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> "AsyncWatch":
        return self

    async def ready(self) -> None:
        """Wait until a server has the watcher: what is written from now on will be told.

        Raises:
            NotConnected: no endpoint could be reached within the dial timeout, and none was before.
            WatchCompacted, Refused: as when iterating.
        """
        while not self._began and not self._closed:
            await self._step()

    async def __anext__(self) -> rpc_pb2.WatchResponse:
        """Wait for the next answer.

        Raises:
            NotConnected: no endpoint could be reached within the dial timeout, and none was before.
            WatchCompacted: what it is to be told next is gone.
            Refused: the server does not let it watch; no server has room for it (RESOURCE_EXHAUSTED).
        """
        while self._told is None:
            if self._closed:
                raise StopAsyncIteration
            await self._step()
        told, self._told = self._told, None
        return told

    async def request_progress(self) -> None:
        """Ask how far the server is; the answer comes when everything up to there has been told. `ready` comes first.

        A request is lost with the connection it was made on.
        """
        if self._call is not None:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    async def close(self) -> None:
        """End the watcher; one that waits for an answer ends, too."""
        self._closed = True
        self._drop()

    async def _step(self) -> None:
        """Open a stream if there is none, and take one answer."""
        try:
            call = self._call or await self._open()
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            await self._broken(Code(error.code().value[0]), error.details() or "")
            return
        except asyncio.CancelledError:
            self._drop()
            task = asyncio.current_task()
            # Closing from another task cancels the call, not this task.
            if self._closed and task is not None and not task.cancelling():
                return
            raise
        if not isinstance(answer, rpc_pb2.WatchResponse):
            await self._broken(Code.UNAVAILABLE, "the server ended the stream")
            return
        try:
            told = self._place.take(answer)
        except Refused as error:
            if self._may_log_in(error) or self._may_go_elsewhere(error):
                self._drop()
                return
            await self.close()
            raise
        self._renewals = 0
        if answer.created:
            self._began = self._created = True
            self._full.clear()
        self._told = told

    def _may_log_in(self, error: Refused) -> bool:
        """Whether it may go on with another token."""
        self._renewals += 1
        return self._renewals <= RENEWALS and self._login.forget(self._token, error)

    def _may_go_elsewhere(self, error: Refused) -> bool:
        """Whether another server may have room for it; none is asked twice."""
        if error.code is not Code.RESOURCE_EXHAUSTED or self._created:
            return False
        self._full[self._target] = error
        self._lost(self._target)
        return True

    async def _open(self) -> _Call:
        while True:
            try:
                self._token = await self._login.token()
                self._target, channel = await self._connect()
                break
            except NotConnected:
                if not self._began:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
        if self._target in self._full:
            await self.close()
            raise self._full[self._target]
        self._created = False
        method = channel.stream_stream(
            WATCH_PATH,
            request_serializer=rpc_pb2.WatchRequest.SerializeToString,
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )
        self._call = method(None, metadata=(*LEADER_METADATA, *metadata(self._token)))
        await self._call.write(self._place.request())
        return self._call

    async def _broken(self, code: Code, message: str) -> None:
        self._drop()
        if self._closed:
            return
        if code not in _RESUMABLE:
            error = typed(Refused, code, message)
            if isinstance(error, Refused) and (self._may_log_in(error) or self._may_go_elsewhere(error)):
                return
            await self.close()
            raise error
        self._lost(self._target)
        await asyncio.sleep(PAUSE_SECONDS)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
