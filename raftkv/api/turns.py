"""Waiting for one's turn under a prefix: what locks and elections are made of (etcd's concurrency recipes).

Everyone who wants a turn creates a key `prefix/lease id`, attached to a lease. Turns go by create revision, so the one
that is on is the oldest key, and its create revision is a fencing token: it only grows. Each waits for the deletion of
the key just before its own, told by the member's own hub.

A proposal of ours is answered when this member has applied it, so every older key is here; local state can only show
some that are gone already. What may be missed is that our own key is gone: that is asked linearizably at the end.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from raftkv import errors
from raftkv.api import access
from raftkv.api.guard import Limits
from raftkv.api.kv import decode
from raftkv.api.lease import LeaseService
from raftkv.auth import MEMBER
from raftkv.mvcc import encoding as enc
from raftkv.mvcc import validate
from raftkv.mvcc.interval import interval
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.rpc import Context
from raftkv.rpc.framing import Deframer
from raftkv.server import proposals
from raftkv.server.server import Server
from raftkv.status import Code, StatusError

M = TypeVar("M", bound=Message)

logger = logging.getLogger(__name__)

SESSION_TTL_SECONDS = 60
"""Of the lease made for a caller that brings none."""
KEYS_PER_TURN = 1000
"""Looked at in one turn of the loop, within a few milliseconds."""


class Changes:
    """Tells what changes under a key or prefix behind a revision: nothing is missed, nothing is told twice."""

    def __init__(self, server: Server, key: bytes, range_end: bytes = b"", *, after: int, puts: bool = True) -> None:
        """`puts`: of those too, not of deletions alone."""
        self._changed = asyncio.Event()
        self._stream = server.hub.open(self._changed.set)
        self._frames = Deframer(b"", sys.maxsize)
        filters = [] if puts else [rpc_pb2.WatchCreateRequest.NOPUT]
        request = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, start_revision=after + 1, filters=filters)
        # Such watchers are as many as calls that wait, which are bounded already.
        self._stream.create(request, bounded=False)

    def __enter__(self) -> "Changes":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    async def next(self) -> list[kv_pb2.Event] | None:
        """Wait for changes; None: history was compacted before it was told, so look at the state and begin anew.

        Raises:
            StatusError: it is not watched, and would not be when tried again.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            messages = self._frames.feed(b"".join(iter(self._stream.take, b"")))
            answers = [rpc_pb2.WatchResponse.FromString(message) for message in messages]
            if events := [event for answer in answers for event in answer.events]:
                return events
            for answer in answers:
                if answer.compact_revision:
                    return None
                if answer.canceled:
                    raise failed(answer.cancel_reason)


class Turn:
    """One key in the queue under a prefix."""

    def __init__(self, server: Server, name: bytes, lease_id: int, context: Context) -> None:
        self._server = server
        self._context = context
        self._prefix = name + b"/"
        self.lease_id = lease_id
        self.key = self._prefix + b"%x" % lease_id
        self.create_revision = 0
        self.revision = 0
        """At which the turn came."""
        self.created = False
        """Whether the key is ours to delete: not if it was there already, made by another call on the same lease."""

    async def enter(self, value: bytes) -> rpc_pb2.TxnResponse:
        """Join the queue, or find our place if the lease has one; the answer of the transaction.

        Raises:
            LeaseNotFound, and what proposing raises.
        """
        request = rpc_pb2.TxnRequest(compare=[_created_at(self.key, 0)])
        put = request.success.add().request_put
        put.key, put.value, put.lease = self.key, value, self.lease_id
        request.failure.add().request_range.key = self.key
        with codeless():
            await self._server.admit(validate.put_cost(request))
            await check_read(self._server, self._prefix, self._context)
        entering = access.propose(self._server, proposals.TXN, request.SerializeToString(), self._context)
        future = asyncio.ensure_future(entering)
        try:
            with codeless():
                pieces = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The place may still be taken, for nobody.
            future.add_done_callback(self._leave_late)
            raise
        return self._entered(pieces)

    def _entered(self, pieces: list[bytes]) -> rpc_pb2.TxnResponse:
        response = rpc_pb2.TxnResponse.FromString(b"".join(pieces))
        self.created = response.succeeded
        self.revision = self.create_revision = response.header.revision
        if not self.created:
            self.create_revision = response.responses[0].response_range.kvs[0].create_revision
        return response

    def _leave_late(self, future: "asyncio.Future[list[bytes]]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._entered(future.result())
            self.leave()

    async def wait(self) -> bool:
        """Wait until no older key is left; whether our key is still there then.

        By the time a member answers, it may have applied the end of our lease with that of everyone before us.

        Raises:
            Timeout, Stopped: nobody knows.
        """
        waited = False
        while (older := await self._predecessor()) is not None:
            waited = True
            with Changes(self._server, older, after=self._server.store.revision, puts=False) as changes:
                kv = newest(self._server, older)
                # While we looked it may have gone, and come back behind us.
                if kv is not None and kv.create_revision < self.create_revision:
                    await changes.next()
        if waited:
            await self._server.linearizable()
        # Not that of our entry, even if nobody was before us by now: who was may have left with it.
        self.revision = self._server.store.revision
        kv = newest(self._server, self.key)
        return kv is not None and kv.create_revision == self.create_revision

    async def _predecessor(self) -> bytes | None:
        """The key just before ours. Those who come meanwhile are behind us."""
        found: kv_pb2.KeyValue | None = None
        async for kv in under(self._server, self._prefix):
            if kv.create_revision < self.create_revision and (
                found is None or kv.create_revision > found.create_revision
            ):
                found = kv
        return None if found is None else found.key

    def leave(self) -> None:
        """Give the place up, without waiting for it: the caller may be gone, or the member about to stop."""
        if not self.created:
            return
        request = rpc_pb2.TxnRequest(compare=[_created_at(self.key, self.create_revision)])
        request.success.add().request_delete_range.key = self.key
        try:
            # Whoever might enter may leave, whatever has become of its rights.
            future = self._server.propose(proposals.TXN, request.SerializeToString(), MEMBER)
        except StatusError as error:
            logger.info("a place in the queue under %r stays until its lease ends: %s", self._prefix, error.message)
        else:
            future.add_done_callback(_note_failure)


def _note_failure(future: "asyncio.Future[list[bytes]]") -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        logger.info("a place in a queue stays until its lease ends: %s", error)


def _created_at(key: bytes, revision: int) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.CREATE, create_revision=revision)


def guarded(key: bytes, create_revision: int) -> rpc_pb2.TxnRequest:
    """A transaction whose success branch runs only while the key is the one that was created then."""
    return rpc_pb2.TxnRequest(compare=[_created_at(key, create_revision)])


async def check_read(server: Server, prefix: bytes, context: Context) -> None:
    """See that the caller may read all keys under a prefix that ends in a slash.

    Raises:
        UserEmpty, AuthOldRevision, PermissionDenied
    """
    if server.auth.enabled:
        await server.linearizable()
        server.auth.check_read(access.caller(context), interval(prefix, prefix_end(prefix)))


def check_read_still(server: Server, prefix: bytes, context: Context) -> None:
    """See, before one more answer of a stream, that what `check_read` allowed is allowed still; no error has a code.

    Raises:
        StatusError: as `check_read`.
    """
    if not server.auth.enabled:
        return
    user = access.caller(context).user
    with codeless():
        if not user:
            raise errors.UserEmpty
        if not server.auth.rights_of(user).may_read(interval(prefix, prefix_end(prefix))):
            raise errors.PermissionDenied


async def transact(server: Server, request: rpc_pb2.TxnRequest, context: Context) -> rpc_pb2.TxnResponse:
    """Run a transaction through the log."""
    with codeless():
        await server.admit(validate.put_cost(request))
        pieces = await access.propose(server, proposals.TXN, request.SerializeToString(), context)
    return rpc_pb2.TxnResponse.FromString(b"".join(pieces))


async def session(server: Server, lease_id: int, context: Context) -> int:
    """The caller's lease; or a new one, which nobody keeps alive, as etcd makes it."""
    if lease_id:
        return lease_id
    request = rpc_pb2.LeaseGrantRequest(TTL=SESSION_TTL_SECONDS)
    pieces = await LeaseService(server).grant(request.SerializeToString(), context)
    return rpc_pb2.LeaseGrantResponse.FromString(b"".join(pieces)).ID


def newest(server: Server, key: bytes) -> kv_pb2.KeyValue | None:
    """The key, as this member has it."""
    chunk = server.store.newest(key)
    return None if chunk is None else enc.decode_chunk(chunk)


async def under(server: Server, prefix: bytes) -> AsyncIterator[kv_pb2.KeyValue]:
    """The keys under a prefix that ends in a slash, as this member has them now.

    There may be a million of them, whatever they are for: only some are looked at in one turn of the loop.
    """
    for place, chunk in enumerate(server.store.select(interval(prefix, prefix_end(prefix))), 1):
        yield enc.decode_chunk(chunk)
        if not place % KEYS_PER_TURN:
            await asyncio.sleep(0)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys under a prefix that ends in a slash."""
    return prefix[:-1] + b"0"


async def oldest(server: Server, prefix: bytes) -> kv_pb2.KeyValue | None:
    """The key whose turn it is, at the revision of this moment."""
    found: kv_pb2.KeyValue | None = None
    async for kv in under(server, prefix):
        if found is None or kv.create_revision < found.create_revision:
            found = kv
    return found


def answer(server: Server, body: Message, revision: int) -> bytes:
    """A response with its header."""
    return server.headers.encode(revision, server.node.term) + body.SerializeToString()


def bounded(kind: type[M], request: bytes, limits: Limits) -> M:
    """Decode a request that goes through the log, unless it is too large for that.

    Raises:
        StatusError
    """
    if len(request) > limits.max_request_bytes:
        raise failed(errors.RequestTooLarge.TEXT)
    return decode(kind, request)


def failed(text: str) -> StatusError:
    """What etcd's recipes raise has no code of its own."""
    return StatusError(Code.UNKNOWN, text)


@contextlib.contextmanager
def codeless() -> Iterator[None]:
    """In etcd refusals pass through a client on their way, and lose their codes; that nobody answers is still said."""
    try:
        yield
    except errors.EtcdError as error:
        if error.code is Code.UNAVAILABLE:
            raise
        raise failed(error.message) from error
