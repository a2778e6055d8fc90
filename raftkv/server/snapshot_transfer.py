"""Snapshots on their way out and in: what a leader's InstallSnapshot becomes.

The leader sends its own store, copied at this moment: the point in the log that it stands for is at or behind the one
that Raft asked for, and the message names it. One transfer at a time goes to a peer, and one at a time is taken. While
one goes out the log is not compacted, nor until the follower has fetched the entries behind it.
"""

import asyncio
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import lmdb

from raftkv.mvcc import Backend
from raftkv.raft import InstallSnapshot, NodeId
from raftkv.server.snapshots import ASIDE, Arrival, Copy, Loaded, copy_store
from raftkv.server.times import TransferTimes
from raftkv.server.worker import Blocking
from raftkv.status import Code, StatusError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = (1.0, 30.0)
HOLD_SECONDS = 30.0
"""How long a follower has, after it was given a snapshot, to fetch the entries behind it."""

SendCopy = Callable[[InstallSnapshot, Copy, Callable[[int, int], Awaitable[bytes]]], Awaitable[None]]
"""Sends a copy with its message and returns when it is installed; raises ConnectionError."""
Install = Callable[[InstallSnapshot, Loaded], Awaitable[bool]]
"""Lets the member go on from a store; whether it had use for it."""


class Transfers:
    """The snapshots that one member sends and takes.

    Invariants:
    1. At most one transfer to each peer is under way, and one arrival until it is installed or refused.
    2. Files are touched in one thread, in order: the one for long work.
    """

    def __init__(
        self,
        data_dir: str,
        *,
        backend: Callable[[], Backend],
        install: Install,
        report: Callable[[NodeId, bool], None],
        send: SendCopy,
        matched: Callable[[NodeId], int | None],
        run: Blocking,
    ) -> None:
        """`backend` gives the store in force; `report` hears how a transfer to a peer ended.

        `matched` tells up to which index a peer's log agrees with ours; None when we do not lead it.
        """
        self._loop = asyncio.get_running_loop()
        self._data_dir = data_dir
        self._backend = backend
        self._install = install
        self._report = report
        self._send = send
        self._matched = matched
        self._run = run
        self._sending: dict[NodeId, asyncio.Task[None]] = {}
        self._failures: dict[NodeId, int] = {}
        self._arriving: Receiving | None = None
        self._given: dict[NodeId, tuple[int, float]] = {}
        self.sent: defaultdict[NodeId, TransferTimes] = defaultdict(TransferTimes)
        self.received: defaultdict[NodeId, TransferTimes] = defaultdict(TransferTimes)

    @property
    def holding(self) -> bool:
        """Whether the log is to be kept for followers that are being given a snapshot."""
        now = self._loop.time()
        for peer, (index, until) in list(self._given.items()):
            matched = self._matched(peer)
            if matched is None or matched > index or now > until:
                del self._given[peer]
        return bool(self._sending or self._given)

    async def close(self) -> None:
        """End what is under way and wait for the thread."""
        tasks = list(self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.in_thread(lambda: None)

    def in_thread(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Run blocking work in the thread for long work; the future has its result, or raises what it raised."""
        future: asyncio.Future[T] = self._loop.create_future()
        results: list[T] = []

        def done(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(results[0])
            else:
                future.set_exception(error)

        self._run(lambda: results.append(work()), done)
        return future

    # Out

    def send(self, message: InstallSnapshot) -> None:
        """Send the store to a peer, unless it is being sent; the outcome is reported."""
        if message.to not in self._sending:
            self._sending[message.to] = self._loop.create_task(self._transfer(message))

    async def _transfer(self, message: InstallSnapshot) -> None:
        peer = message.to
        ok = False
        try:
            index = await self._timed_send(message)
            ok = True
            self._failures.pop(peer, None)
            self._given[peer] = index, self._loop.time() + HOLD_SECONDS
        except (OSError, lmdb.Error) as error:
            failures = self._failures[peer] = self._failures.get(peer, 0) + 1
            wait = min(RETRY_SECONDS[0] * 2.0 ** min(failures - 1, 10), RETRY_SECONDS[1])
            logger.warning("the snapshot for member %x did not arrive, again in %g s: %s", peer, wait, error)
            await asyncio.sleep(wait)
        finally:
            del self._sending[peer]
        self._report(peer, ok)

    async def _timed_send(self, message: InstallSnapshot) -> int:
        times, started, ok = self.sent[message.to], self._loop.time(), False
        times.under_way += 1
        try:
            index = await self._copy_and_send(message)
            ok = True
        finally:
            times.ended(self._loop.time() - started, ok=ok)
        return index

    async def _copy_and_send(self, message: InstallSnapshot) -> int:
        backend = self._backend()
        copying = self.in_thread(partial(copy_store, backend, self._data_dir, message.to))
        try:
            copy = await asyncio.shield(copying)
        except asyncio.CancelledError:
            copying.add_done_callback(_close_copy)
            raise
        try:
            if copy.metadata.index < message.metadata.index:
                raise OSError(f"the store holds {copy.metadata.index}, less than {message.metadata.index}")
            message = InstallSnapshot(message.sender, message.to, message.term, copy.metadata)
            logger.info("sending member %x a snapshot of %d bytes: %s", message.to, copy.size_bytes, copy.metadata)
            await self._send(message, copy, lambda offset, length: self.in_thread(partial(copy.read, offset, length)))
        finally:
            # Behind a read that may be under way.
            self.in_thread(copy.close)
        return copy.metadata.index

    # In

    def begin(self, message: InstallSnapshot) -> "Receiving":
        """Prepare to take a snapshot.

        Raises:
            StatusError: another is being taken.
        """
        if self._arriving is not None:
            raise StatusError(Code.UNAVAILABLE, "raftkv: this member takes another snapshot already")
        logger.info("member %x sends a snapshot: %s", message.sender, message.metadata)
        self._arriving = Receiving(self, Arrival(self._data_dir, message), self.received[message.sender])
        return self._arriving

    def ended(self) -> None:
        """The arrival is over."""
        self._arriving = None

    async def install(self, message: InstallSnapshot, loaded: Loaded) -> None:
        """Go on from a store that arrived.

        Raises:
            StatusError: this member cannot use it.
        """
        # When this raises, the log may speak of the store already: the next start finds out.
        if not await self._install(message, loaded):
            await self.in_thread(partial(self._drop, loaded))
            raise StatusError(Code.FAILED_PRECONDITION, "raftkv: this member has no use for the snapshot")

    def _drop(self, loaded: Loaded) -> None:
        loaded.store.backend.close()
        shutil.rmtree(os.path.join(self._data_dir, ASIDE), ignore_errors=True)


class Receiving:
    """One snapshot that arrives; what is done with files is done in the thread, in order."""

    def __init__(self, transfers: Transfers, arrival: Arrival, times: TransferTimes) -> None:
        self._transfers = transfers
        self._arrival = arrival
        self._times = times
        self._started = asyncio.get_running_loop().time()
        times.under_way += 1
        self._finishing = False
        self._task: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            StatusError: the disk refuses.
        """
        await self._in_thread(partial(self._arrival.write, data))

    async def finish(self) -> None:
        """Put aside what has arrived and go on from it; the call that brought it may end meanwhile.

        Raises:
            StatusError: it cannot be used.
        """
        self._finishing = True
        self._task = asyncio.get_running_loop().create_task(self._finish())
        self._task.add_done_callback(_note_outcome)
        await asyncio.shield(self._task)

    async def _finish(self) -> None:
        ok = False
        try:
            loaded = await self._in_thread(self._arrival.keep)
            await self._transfers.install(self._arrival.message, loaded)
            ok = True
        finally:
            await self._end(ok=ok)

    def abandon(self) -> None:
        """Drop what has arrived, unless all of it has. Safe to call in any state."""
        if not self._finishing:
            self._finishing = True
            self._task = asyncio.get_running_loop().create_task(self._end(ok=False))

    async def _end(self, *, ok: bool) -> None:
        self._times.ended(asyncio.get_running_loop().time() - self._started, ok=ok)
        try:
            await self._transfers.in_thread(self._arrival.discard)
        finally:
            self._transfers.ended()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await self._transfers.in_thread(work)
        except (OSError, ValueError, lmdb.Error) as error:
            logger.error("cannot take a snapshot: %s", error)
            raise StatusError(Code.UNAVAILABLE, f"raftkv: cannot take the snapshot: {error}") from error


def _note_outcome(task: "asyncio.Task[None]") -> None:
    """Nobody may be waiting any more; what went wrong was logged."""
    if not task.cancelled():
        task.exception()


def _close_copy(copying: "asyncio.Future[Copy]") -> None:
    if not copying.cancelled() and copying.exception() is None:
        copying.result().close()
