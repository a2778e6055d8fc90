"""Those who hold leases and locks amid the other clients, few and slow, and what of it must have been so.

A holder of leases takes one, attaches a key, renews it for a while, asks what is left of it, and revokes it or lets it
end. One who wants the lock takes it on a lease of its own, which it keeps alive more often than not, and writes under
its fencing token: the create revision of the lock's key.

When an entry was committed is not known from outside, but by when it was: as soon as somebody was told of it. Leases
end with the keys attached to them, and a watcher hears of that at once, so that an early end is seen to be early.
"""

import asyncio
import time
from collections.abc import Sequence

from raftkv import errors
from raftkv.client import AsyncClient, ClientError
from raftkv.client import requests as req
from raftkv.pb import rpc_pb2, v3lock_pb2
from raftkv.simulation.history import History, Operation
from raftkv.simulation.invariants import Violation
from raftkv.simulation.linearizability import FOREVER
from raftkv.simulation.model import Model
from tests.partition.asking import CALL_SECONDS, Asker

LEASERS, LOCKERS = 2, 3
PAUSE_SECONDS = 0.5
LOCK_SECONDS = 2.0
"""Waited for one's turn."""
NAME, GUARDED = b"lock", b"guarded"
LOCK = req.Rpc("/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest, v3lock_pb2.LockResponse, False)
UNLOCK = req.Rpc("/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest, v3lock_pb2.UnlockResponse, False)


class Holder(Asker):
    """Somebody with leases."""

    async def run(self) -> None:
        """Hold one thing after another until the recorder stops."""
        members = [AsyncClient([one], timeout=CALL_SECONDS) for one in self.recorder.endpoints] if self.pinned else []
        self._members = members
        try:
            while not self.recorder.stopping:
                await self._pause()
                await self._hold()
        finally:
            for client in (self.client, *members):
                await client.close()

    async def _hold(self) -> None:
        raise NotImplementedError

    async def _pause(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.4, 1.6) * PAUSE_SECONDS)

    async def _grant(self) -> int:
        """A new lease, or 0."""
        granted = await self.ask("grant", req.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=self.rng.choice((2, 3))))
        return rpc_pb2.LeaseGrantResponse.FromString(granted.answer).ID if granted.answer is not None else 0

    async def _revoke(self, lease_id: int) -> None:
        await self.ask("revoke", req.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    async def _renew(self, lease_id: int) -> bool:
        """Renew a lease once; whether it is there still, for all we know."""
        operation = self.begin("renew", rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
        client = self._members[self.member] if self.pinned else self.client
        try:
            answer = await client.lease_keep_alive_once(lease_id)
        except ClientError as error:
            self.failed(operation, error)
            return not isinstance(error, errors.LeaseNotFound)
        operation.returned, operation.answer = time.monotonic_ns(), answer.SerializeToString()
        self.recorder.history.renewals.append((lease_id, operation.invoked, answer.TTL))
        return True


class Leaser(Holder):
    """Takes leases for their own sake."""

    async def _hold(self) -> None:
        lease_id = await self._grant()
        if not lease_id:
            return
        key = b"l/%d" % self.number
        value = b"%d" % (len(self.recorder.history.operations) + 1)
        await self.ask("put", req.PUT, rpc_pb2.PutRequest(key=key, value=value, lease=lease_id))
        for _ in range(self.rng.randrange(5)):
            await self._pause()
            if self.recorder.stopping or not await self._renew(lease_id):
                return
        if self.rng.random() < 0.3:
            await self._revoke(lease_id)
        while not self.recorder.stopping and await self._lives(lease_id):
            await self._pause()
        # It is gone: a renewal that is promised now is one too many.
        await self._renew(lease_id)

    async def _lives(self, lease_id: int) -> bool:
        """Whether a lease is there still, for all we know."""
        asked = await self.ask("ttl", req.LEASE_TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id))
        return asked.answer is None or rpc_pb2.LeaseTimeToLiveResponse.FromString(asked.answer).TTL != GONE


GONE = -1


class Locker(Holder):
    """Takes the lock, and writes under its fencing token."""

    async def _hold(self) -> None:
        lease_id = await self._grant()
        if not lease_id:
            return
        # Who keeps nothing alive may lose its lease in the queue, or with the lock.
        keeping = asyncio.ensure_future(self._keep(lease_id)) if self.rng.random() < 0.7 else None
        try:
            locked = await self.ask("lock", LOCK, v3lock_pb2.LockRequest(name=NAME, lease=lease_id), LOCK_SECONDS)
            if locked.answer is not None:
                await self._write(v3lock_pb2.LockResponse.FromString(locked.answer).key)
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        if self.rng.random() < 0.5:
            await self._revoke(lease_id)

    async def _keep(self, lease_id: int) -> None:
        while await self._renew(lease_id):
            await self._pause()

    async def _write(self, key: bytes) -> None:
        asked = await self.ask("range", req.RANGE, rpc_pb2.RangeRequest(key=key))
        kvs = rpc_pb2.RangeResponse.FromString(asked.answer).kvs if asked.answer is not None else ()
        for _ in range(self.rng.randrange(1, 4)) if kvs else ():
            await self.ask(
                "txn", req.TXN, _fenced(key, kvs[0].create_revision, len(self.recorder.history.operations) + 1)
            )
            await self._pause()
        if self.rng.random() < 0.7:
            await self.ask("unlock", UNLOCK, v3lock_pb2.UnlockRequest(key=key))


def _fenced(key: bytes, token: int, number: int) -> rpc_pb2.TxnRequest:
    request = rpc_pb2.TxnRequest()
    request.compare.add(key=key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=token)
    put = request.success.add().request_put
    put.key, put.value = GUARDED, b"%d" % number
    return request


# What must have been so


def known_by(history: History, heard: dict[int, int], model: Model) -> list[int]:
    """By when (ns) each entry of the log was committed for certain: somebody had been told of it or of a later one.

    Raises:
        Violation: what was told cannot have been.
    """
    known = [FOREVER] * (model.index + 1)

    def told(index: int, time_ns: int) -> None:
        known[index] = min(known[index], time_ns)

    for revision, time_ns in heard.items():
        told(model.index_of.get(revision, 0), time_ns)
    for operation in history.operations:
        if operation.parsed is not None:
            told(model.index_of[operation.parsed.header.revision], operation.returned)  # type: ignore[attr-defined]
        elif (gone := _gone(operation)) is not None:
            ends = model.ended.get(gone)
            if not ends:
                raise Violation(f"I16: lease {gone:x} was said to be gone, and has not ended in the log")
            told(ends[-1].index, operation.returned)
    for index in reversed(range(model.index)):
        known[index] = min(known[index], known[index + 1])
    return known[1:]


def left_of(operation: Operation) -> rpc_pb2.LeaseTimeToLiveResponse | None:
    """What an operation was told of a lease, if it asked for that."""
    if operation.kind != "ttl" or operation.answer is None:
        return None
    return rpc_pb2.LeaseTimeToLiveResponse.FromString(operation.answer)


def is_gone(operation: Operation) -> bool:
    """Whether somebody asked for a lease and was told that it is gone."""
    left = left_of(operation)
    return left is not None and left.TTL == GONE


def _gone(operation: Operation) -> int | None:
    """The lease of which an answer says that it is gone."""
    left = left_of(operation)
    if left is not None:
        return left.ID if left.TTL == GONE else None
    refused = operation.kind == "renew" and operation.error is not None and operation.refused
    if not refused or operation.error.message != errors.LeaseNotFound.TEXT:
        return None
    return operation.request.ID


def check_left(history: History, model: Model, known: Sequence[int]) -> None:
    """A lease that had ended for certain is said to be gone (I16).

    Raises:
        Violation
    """
    for operation in history.operations:
        left = left_of(operation)
        if left is None or left.TTL == GONE:
            continue
        ends = model.ended.get(left.ID)
        if ends and known[ends[-1].index - 1] < operation.invoked:
            raise Violation(f"I16: lease {left.ID:x} was said to have {left.TTL} s left after it had ended")


def check_fenced(history: History, model: Model) -> None:
    """Nobody wrote under the lock after somebody who came later: their tokens never go down (I18).

    Raises:
        Violation
    """
    newest = 0, 0
    for revision, version in model.versions.get(GUARDED, ()):
        assert version is not None
        request = history.operations[int(version.value) - 1].request
        assert isinstance(request, rpc_pb2.TxnRequest)
        token = request.compare[0].create_revision
        if token < newest[0]:
            raise Violation(
                f"I18: the holder since {token} wrote at {revision}, after the one since {newest[0]} had at {newest[1]}"
            )
        newest = token, revision
