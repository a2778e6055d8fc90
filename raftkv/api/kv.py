"""etcdserverpb.KV: the keyspace.

Writes are checked here and replicated as the client's own bytes; the response comes back encoded from the apply.
Reads wait until they are linearizable, unless a serializable one was asked for, and are joined from stored bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from raftkv import errors
from raftkv.api.access import caller
from raftkv.api.guard import Limits
from raftkv.api.range_stream import range_stream
from raftkv.api.slices import Slices
from raftkv.mvcc import validate
from raftkv.mvcc.interval import interval
from raftkv.mvcc.ranges import is_gathered
from raftkv.pb import rpc_pb2
from raftkv.rpc import Answer, Context, Gathered, Later, Method
from raftkv.server import proposals
from raftkv.server.server import Server
from raftkv.status import Code, StatusError

M = TypeVar("M", bound=Message)

GATHERERS = 2
"""So many gather at once: what they have counts as in flight when it is complete, and writers tell each of them."""


def decode(kind: type[M], request: bytes) -> M:
    """Decode a request.

    Raises:
        StatusError: INTERNAL, as gRPC servers answer bytes that are not the message.
    """
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error


class KVService:
    """Range, RangeStream, Put, DeleteRange, Txn and Compact."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self._auth = server.auth
        self._store = server.store
        self._max_request_bytes = limits.max_request_bytes
        self._max_txn_ops = limits.max_txn_ops
        self._large_keys = limits.large_keys
        self._slices = Slices()
        self._gatherers = asyncio.Semaphore(GATHERERS)

    def methods(self) -> dict[str, Method]:
        """The service's method table."""
        prefix = "/etcdserverpb.KV/"
        return {
            prefix + "Range": Method.unary(self.range),
            prefix + "RangeStream": Method.server_stream(self.range_stream),
            prefix + "Put": Method.unary(self.put),
            prefix + "DeleteRange": Method.unary(self.delete_range),
            prefix + "Txn": Method.unary(self.txn),
            prefix + "Compact": Method.unary(self.compact),
        }

    def range(self, request: bytes, context: Context) -> Later | Awaitable[Answer]:
        """Answer the keys of an interval."""
        wanted = decode(rpc_pb2.RangeRequest, request)
        validate.check_range(wanted)
        server = self._server
        if wanted.range_end and self._is_large(wanted):
            return self._range_in_turns(wanted, context)
        current = server.current if wanted.serializable else server.linearizable()
        return Later(current, partial(self._range, wanted, context))

    def _is_large(self, *wanted: rpc_pb2.RangeRequest) -> bool:
        """Whether these ranges together may read more than one turn of the loop should."""
        return sum(map(self._most_keys, wanted)) > self._large_keys

    def _most_keys(self, wanted: rpc_pb2.RangeRequest) -> int:
        if not wanted.range_end or wanted.count_only:
            return 1
        if 0 < wanted.limit <= self._large_keys:
            return wanted.limit
        if wanted.revision > 0:
            # How many keys there were is not known before they are read.
            return self._large_keys + 1
        return self._store.count(interval(wanted.key, wanted.range_end))

    async def _in_turn(self, read: Callable[[], list[bytes]], serializable: bool) -> list[bytes]:
        if not serializable:
            await self._server.linearizable()
        await self._slices.turn()
        return read()

    async def _range_in_turns(self, wanted: rpc_pb2.RangeRequest, context: Context) -> list[bytes] | Gathered:
        """Read many keys a slice in a turn, if that can be."""
        if not wanted.serializable:
            await self._server.linearizable()
        if not is_gathered(wanted, self._store.revision):
            await self._slices.turn()
            return self._range(wanted, context)
        await self._gatherers.acquire()
        try:
            await self._slices.turn()
            if not is_gathered(wanted, self._store.revision):
                # It asks for a revision that was the newest a moment ago.
                return self._range(wanted, context)
            return await self._gather(wanted, context)
        finally:
            self._gatherers.release()

    async def _gather(self, wanted: rpc_pb2.RangeRequest, context: Context) -> Gathered:
        """Read many keys a slice in a turn, as all of them are in the first."""
        server, slow = self._server, self._server.slow
        if self._auth.enabled:
            server.rules.check_range(caller(context), wanted)
        gathered = Gathered(server.header())
        began, took = slow.clock(), 0.0
        try:
            with closing(self._store.range_slices(wanted, self._large_keys)) as slices:
                for chunks, more in slices:
                    gathered.add(chunks)
                    took += slow.clock() - began
                    if more:
                        await self._slices.turn()
                    began = slow.clock()
        except StatusError:
            server.times.ranges[False].observe(slow.clock() - began)
            raise
        server.times.ranges[True].observe(took)
        slow.ranged(wanted, took, gathered)
        return gathered

    def _range(self, wanted: rpc_pb2.RangeRequest, context: Context) -> list[bytes]:
        if self._auth.enabled:
            self._server.rules.check_range(caller(context), wanted)
        slow = self._server.slow
        started = slow.clock()
        times = self._server.times.ranges
        try:
            pieces = self._store.range(wanted)
        except StatusError:
            times[False].observe(slow.clock() - started)
            raise
        took = slow.clock() - started
        times[True].observe(took)
        slow.ranged(wanted, took, pieces)
        return [self._server.header(), *pieces]

    def range_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer the keys of an interval in chunks, at one revision."""
        wanted = decode(rpc_pb2.RangeRequest, request)
        validate.check_range_stream(wanted)
        turns = self._slices.turn
        return range_stream(
            self._server, wanted, context, self._max_request_bytes, turns, wait_first=self._is_large(wanted)
        )

    def put(self, request: bytes, context: Context) -> Awaitable[list[bytes]]:
        """Write one key."""
        validate.check_put(decode(rpc_pb2.PutRequest, request))
        return self._propose_costly(proposals.PUT, request, context, validate.PUT_OVERHEAD_BYTES + len(request))

    def delete_range(self, request: bytes, context: Context) -> Awaitable[list[bytes]]:
        """Delete the keys of an interval."""
        validate.check_delete_range(decode(rpc_pb2.DeleteRangeRequest, request))
        return self._propose(proposals.DELETE_RANGE, request, context)

    def txn(self, request: bytes, context: Context) -> Awaitable[list[bytes]] | Later:
        """Run a transaction; one that only reads does not go through the log."""
        wanted = decode(rpc_pb2.TxnRequest, request)
        validate.check_txn(wanted, self._max_txn_ops)
        server = self._server
        if not validate.txn_is_read_only(wanted):
            return self._propose_costly(proposals.TXN, request, context, validate.put_cost(wanted))
        serializable = validate.txn_is_serializable(wanted)
        read = partial(self._read_txn, wanted, context)
        if self._is_large(*_ranges(wanted)):
            return self._in_turn(read, serializable)
        return Later(server.current if serializable else server.linearizable(), read)

    def _read_txn(self, wanted: rpc_pb2.TxnRequest, context: Context) -> list[bytes]:
        if self._auth.enabled:
            self._server.rules.check_txn(caller(context), wanted)
        body = self._store.read_txn(wanted)
        return [self._server.header(), body]

    async def compact(self, request: bytes, context: Context) -> list[bytes]:
        """Forget history; with `physical`, answer when this member has removed it."""
        wanted = decode(rpc_pb2.CompactionRequest, request)
        response = await self._propose(proposals.COMPACTION, request, context)
        if wanted.physical:
            await self._server.compaction.wait()
        return response

    def _propose_costly(
        self, operation: proposals.Operation, request: bytes, context: Context, cost: int
    ) -> Awaitable[list[bytes]]:
        if self._server.quota.admits(cost):
            return self._propose(operation, request, context)
        return self._propose_if_admitted(operation, request, context, cost)

    async def _propose_if_admitted(
        self, operation: proposals.Operation, request: bytes, context: Context, cost: int
    ) -> list[bytes]:
        await self._server.admit(cost)
        return await self._propose(operation, request, context)

    def _propose(self, operation: proposals.Operation, request: bytes, context: Context) -> Awaitable[list[bytes]]:
        if len(request) > self._max_request_bytes:
            raise errors.RequestTooLarge
        return self._server.propose(operation, request, context.caller)


def _ranges(wanted: rpc_pb2.TxnRequest) -> Iterator[rpc_pb2.RangeRequest]:
    """The ranges of a transaction that only reads, of both branches."""
    for branch in (wanted.success, wanted.failure):
        for op in branch:
            if op.HasField("request_txn"):
                yield from _ranges(op.request_txn)
            else:
                yield op.request_range
