"""The store on its way to disk: one flush at a time, and copies without gaps between two of them.

Whoever writes to disk here may find it full. What could not be written then is tried again: the log has it, and nothing
of the log is forgotten before the store has it too.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from raftkv import errors
from raftkv.histogram import Histogram
from raftkv.mvcc import Backend, Store
from raftkv.server.backup import SENDING
from raftkv.server.worker import Work

logger = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_BYTES = 8 << 20
FLUSH_SECONDS = 2.0
FULL_SECONDS = 0.5
"""How long to wait for space on a full disk."""


class Host(Protocol):
    """The server whose store it is."""

    @property
    def store(self) -> Store: ...

    @property
    def stopped(self) -> bool:
        """Whether nothing is written any more."""

    @property
    def failed(self) -> asyncio.Future[BaseException]: ...

    @property
    def installing(self) -> bool:
        """Whether another store is about to take the place of ours."""

    @property
    def applied_index(self) -> int: ...

    def write_aside(self, work: Work, then: Callable[[], None]) -> None:
        """Have a flush written in its thread, and go on with `then`; what fails stops the member."""

    def aside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have long work done in its thread; what fails is the caller's."""

    def durable(self, index: int) -> None:
        """Hear that the store holds everything up to this index durably."""

    def retire(self, backend: Backend) -> None:
        """Close a store that was replaced."""

    def fail(self, error: BaseException) -> None: ...


class Flushes:
    """Brings a member's store to disk.

    Invariants:
    1. At most one flush or one copy is under way, and no flush begins before a copy has taken the file's place or is
       given up.
    2. A flush belongs to the store that was in force when it began.
    """

    def __init__(self, host: Host, defragment_times: Histogram) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._times = defragment_times
        self._busy = False
        self._waiters: list[asyncio.Future[None]] = []
        self._defragmentation: asyncio.Task[tuple[int, int]] | None = None
        self._began_at = self._loop.time()

    @property
    def busy(self) -> bool:
        """Whether a flush or a copy is under way."""
        return self._busy

    @property
    def defragmenting(self) -> bool:
        """Whether a copy without gaps is asked for or being made."""
        return self._defragmentation is not None

    @property
    def due(self) -> bool:
        """Whether it is time for the next flush."""
        pending = self._host.store.backend.pending_bytes
        return pending > FLUSH_BYTES or self._loop.time() - self._began_at > FLUSH_SECONDS

    def begin(self) -> None:
        """Write what has changed, unless something is under way or nothing has changed."""
        if self._busy:
            return
        self._began_at = self._loop.time()
        flush = self._host.store.begin_flush()
        if flush is None:
            return
        host, applied, backend = self._host, self._host.applied_index, self._host.store.backend
        full: list[OSError] = []

        def write() -> None:
            try:
                flush.write()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                full.append(error)

        def written() -> None:
            if full:
                self._later(full.pop(), attempt)
                return
            backend.end_flush(flush)
            self._ended()
            if backend is host.store.backend:
                host.durable(applied)
            else:
                host.retire(backend)

        def attempt() -> None:
            host.write_aside(write, written)

        self._busy = True
        attempt()

    def _later(self, error: OSError, attempt: Callable[[], None]) -> None:
        """Wait for space; who waits for the flush hears of it."""
        logger.error("cannot write the store, again in %g s: %s", FULL_SECONDS, error)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(errors.NoSpace())

        def again() -> None:
            if not self._host.stopped:
                attempt()

        self._loop.call_later(FULL_SECONDS, again)

    def _ended(self) -> None:
        self._busy = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def flushed(self) -> None:
        """Wait until the store holds durably what has been applied by now.

        Raises:
            Stopped: this member has failed or is closed.
            NoSpace: the disk is full.
        """
        # A flush that is under way began too early.
        for _ in range(2 if self._busy else 1):
            if self._host.stopped:
                raise errors.Stopped
            self.begin()
            if self._busy:
                ended: asyncio.Future[None] = self._loop.create_future()
                self._waiters.append(ended)
                either: list[asyncio.Future[Any]] = [ended, self._host.failed]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    ended.result()
        if self._host.failed.done():
            raise errors.Stopped

    async def defragment(self, data_dir: str) -> tuple[int, int]:
        """Replace the store's file by a copy without gaps, while this member goes on; its size before and after.

        Raises:
            Stopped: this member has failed or is closed.
            NoSpace: the disk is full.
            OSError, lmdb.Error: there is no space for the copy, for example; nothing has changed then.
        """
        if self._defragmentation is None:
            self._defragmentation = self._loop.create_task(self._defragment(data_dir))
            self._defragmentation.add_done_callback(self._defragmented)
        # Whoever asked may go away: a copy in the making is not left alone.
        return await asyncio.shield(self._defragmentation)

    def _defragmented(self, task: asyncio.Task[tuple[int, int]]) -> None:
        self._defragmentation = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("the store was not defragmented: %s", error)

    async def _defragment(self, data_dir: str) -> tuple[int, int]:
        await self.flushed()
        while self._busy:
            await self.flushed()
        # No flush begins meanwhile: what changes stays in memory, and in the log.
        self._busy = True
        host, backend = self._host, self._host.store.backend
        before, started = backend.size_bytes, self._loop.time()
        try:
            copied = await host.aside(partial(backend.copy_aside, os.path.join(data_dir, SENDING)))
            if host.installing or backend is not host.store.backend:
                # The leader's store takes the place of ours.
                await host.aside(partial(backend.abandon, copied))
                raise errors.Stopped
            await self._settle(backend.adopt(copied, os.path.join(data_dir, "store")))
            self._times.observe(self._loop.time() - started)
        finally:
            self._ended()
            if backend is not host.store.backend:
                host.retire(backend)
        logger.info("the store is defragmented: %d bytes before, %d now", before, backend.size_bytes)
        return before, backend.size_bytes

    async def _settle(self, settle: Work) -> None:
        """Make sure of a file that the member has gone on with already: without that it must not go on."""
        try:
            await self._host.aside(settle)
        except Exception as error:
            self._host.fail(error)
            raise
