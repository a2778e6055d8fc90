"""Transactions written as plain reads and writes (software transactional memory).

The first read fixes a revision, and all reads are answered as of that one, so what a transaction sees never changes
under it. Writes wait until the end. Then one etcd transaction applies them if nothing that was read has changed since;
else it brings what was read anew, and all is done again. So transactions that commit are serialisable: each is as if it
ran alone at the moment of its commit. One that wrote nothing needs no commit: it is as if it ran at its revision.

`Attempt` is that, without I/O; whoever drives it asks `missing` and `commit`.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from raftkv import errors
from raftkv.client import requests as req
from raftkv.client.requests import Key
from raftkv.pb import kv_pb2, rpc_pb2

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient

T = TypeVar("T")

Found = dict[bytes, kv_pb2.KeyValue | None]


class Attempt:
    """One run of a transaction: what it read, what it wants to write."""

    def __init__(self) -> None:
        self.revision = 0
        """Of all reads; 0: none yet."""
        self.found: Found = {}
        """What is known of keys at `revision`; brought by a failed commit, or read."""
        self._read: dict[bytes, None] = {}
        self._writes: dict[bytes, rpc_pb2.RequestOp] = {}

    def missing(self, key: bytes) -> rpc_pb2.RangeRequest | None:
        """What must be asked, and given to `learn`, before the key can be read; None: nothing."""
        if key in self._writes or key in self.found:
            return None
        return rpc_pb2.RangeRequest(key=key, revision=self.revision)

    def learn(self, key: bytes, answer: rpc_pb2.RangeResponse) -> None:
        """Take the answer."""
        self.revision = self.revision or answer.header.revision
        self.found[key] = answer.kvs[0] if answer.kvs else None

    def read(self, key: bytes) -> bytes | None:
        """The key's value as this transaction sees it, its own writes included; None: there is no such key."""
        written = self._writes.get(key)
        if written is not None:
            return written.request_put.value if written.HasField("request_put") else None
        self._read[key] = None
        kv = self.found[key]
        return None if kv is None else kv.value

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key when the transaction commits."""
        self._writes[key] = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))

    def delete(self, key: bytes) -> None:
        """Delete a key when the transaction commits."""
        self._writes[key] = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))

    def commit(self) -> rpc_pb2.TxnRequest | None:
        """The transaction that applies the writes, or brings what was read anew; None: there is nothing to apply."""
        if not self._writes:
            return None
        request = rpc_pb2.TxnRequest(success=self._writes.values())
        for key in self._read:
            kv = self.found[key]
            unchanged = 0 if kv is None else kv.mod_revision
            request.compare.add(key=key, target=rpc_pb2.Compare.MOD, mod_revision=unchanged)
            request.failure.add().request_range.key = key
        return request

    def next(self, answer: rpc_pb2.TxnResponse) -> "Attempt":
        """The attempt after one whose commit failed with this answer."""
        following = Attempt()
        following.revision = answer.header.revision
        for key, op in zip(self._read, answer.responses, strict=True):
            following.learn(key, op.response_range)
        return following


class AsyncTransaction:
    """What a function given to `AsyncClient.stm` reads and writes with."""

    def __init__(self, client: "AsyncClient", attempt: Attempt) -> None:
        self._client = client
        self._attempt = attempt

    async def get(self, key: Key) -> bytes | None:
        """A key's value, or None; always the same until this transaction writes it."""
        name = req.as_bytes(key)
        request = self._attempt.missing(name)
        if request is not None:
            self._attempt.learn(name, await self._client.call(req.RANGE, request))
        return self._attempt.read(name)

    def put(self, key: Key, value: Key, *, lease: int = 0) -> None:
        """Write a key, when the transaction commits."""
        self._attempt.put(req.as_bytes(key), req.as_bytes(value), lease)

    def delete(self, key: Key) -> None:
        """Delete a key, when the transaction commits."""
        self._attempt.delete(req.as_bytes(key))


async def commit(client: "AsyncClient", attempt: Attempt) -> Attempt | None:
    """Commit an attempt; None: done, else the one to make next.

    Raises:
        OutcomeUnknown: it may have committed. It is not tried again, for then it could happen twice.
    """
    request = attempt.commit()
    if request is None:
        return None
    answer = await client.txn(request)
    return None if answer.succeeded else attempt.next(answer)


async def run(client: "AsyncClient", body: Callable[[AsyncTransaction], Awaitable[T]]) -> T:
    """Run a function as a transaction, again and again until it commits."""
    attempt = Attempt()
    while True:
        try:
            result = await body(AsyncTransaction(client, attempt))
        except errors.Compacted:
            # Its revision is gone.
            attempt = Attempt()
            continue
        following = await commit(client, attempt)
        if following is None:
            return result
        attempt = following
