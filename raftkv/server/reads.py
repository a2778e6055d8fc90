"""Linearizable reads: one ReadIndex round for all reads that wait together (thesis 6.4).

A read may be served once leadership was confirmed after the read arrived and the state machine has applied what was
committed then. All reads that arrive while a round is under way share the next one. Each round has a context of its
own and no context is ever used twice: an answer that was delayed from an earlier round confirms nothing.
"""

import asyncio
import random
import struct
from collections.abc import Iterable

from raftkv import errors
from raftkv.raft import ProposalDropped, RaftNode, ReadState
from raftkv.server.slow import Slow

Waiter = tuple[float, "asyncio.Future[None]"]
"""When the wait ends at the latest (loop time, seconds), and what is woken."""
_CONTEXT = struct.Struct(">QQ")


class Reads:
    """The reads that wait on this member.

    Invariants:
    1. A waiter is in exactly one of: waiting for a round, in the round under way, waiting for its index to be applied.
    2. At most one round is under way.
    """

    __slots__ = (
        "_applying",
        "_context",
        "_counter",
        "_life",
        "_loop",
        "_node",
        "_retry",
        "_round",
        "_sent_at",
        "_slow",
        "_timeout",
        "_waiting",
        "failed",
        "slow_rounds",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: RaftNode,
        rng: random.Random,
        slow: Slow,
        *,
        timeout_seconds: float,
        retry_seconds: float,
    ) -> None:
        self._loop = loop
        self._node = node
        self._slow = slow
        self._timeout = timeout_seconds
        self._retry = retry_seconds
        self._life = rng.getrandbits(64)
        self._counter = 0
        self._context = b""
        self._sent_at = 0.0
        self._waiting: list[Waiter] = []
        self._round: list[Waiter] = []
        self._applying: list[tuple[int, list[Waiter]]] = []
        self.slow_rounds = 0
        """Rounds that got no answer in time and were repeated."""
        self.failed = 0
        """Reads that could not be made linearizable in time."""

    def wait(self) -> asyncio.Future[None]:
        """Register a read; the future is done when local state is current enough to serve it.

        The future raises `Timeout` when leadership could not be confirmed in time.
        """
        future = self._loop.create_future()
        self._waiting.append((self._loop.time() + self._timeout, future))
        return future

    def start_round(self) -> None:
        """Start a round for the reads that wait, unless one is under way or there is no leader to ask."""
        if self._round or not self._waiting or not self._node.leader:
            return
        self._round, self._waiting = self._waiting, []
        self._send()

    def _send(self) -> None:
        self._counter += 1
        self._context = _CONTEXT.pack(self._life, self._counter)
        self._sent_at = self._loop.time()
        try:
            self._node.read_index(self._context)
        except ProposalDropped:
            self._context = b""

    def confirmed(self, states: Iterable[ReadState], applied: int) -> None:
        """Take the answers of rounds; those of rounds given up are ignored."""
        for state in states:
            if state.context != self._context or not self._round:
                continue
            waiters, self._round = self._round, []
            if state.index <= applied:
                self._release(waiters)
            else:
                self._applying.append((state.index, waiters))

    def applied(self, index: int) -> None:
        """Release the reads that waited for this index."""
        if self._applying:
            still = []
            for needed, waiters in self._applying:
                if needed <= index:
                    self._release(waiters)
                else:
                    still.append((needed, waiters))
            self._applying = still

    def leader_changed(self) -> None:
        """Ask the new leader at once; the old one's answer may never come."""
        self._sent_at = float("-inf")

    def tick(self) -> None:
        """Repeat a round that got no answer, under a new context, and end reads whose time is up."""
        if not (self._waiting or self._round or self._applying):
            return
        now = self._loop.time()
        self._waiting = self._expire(self._waiting, now)
        self._round = self._expire(self._round, now)
        self._applying = [(index, left) for index, waiters in self._applying if (left := self._expire(waiters, now))]
        if self._round and self._node.leader and now - self._sent_at >= self._retry:
            self.slow_rounds += 1
            self._send()

    def fail_all(self, error: errors.EtcdError) -> None:
        """End every waiting read, at shutdown."""
        groups = [self._waiting, self._round, *(waiters for _, waiters in self._applying)]
        self._waiting, self._round, self._applying = [], [], []
        for waiters in groups:
            for _, future in waiters:
                if not future.done():
                    future.set_exception(error)

    def _release(self, waiters: list[Waiter]) -> None:
        if waiters:
            self._slow.confirmed(len(waiters), waiters[0][0] - self._timeout)
        for _, future in waiters:
            if not future.done():
                future.set_result(None)

    def _expire(self, waiters: list[Waiter], now: float) -> list[Waiter]:
        if not waiters or waiters[0][0] > now:
            return waiters
        for deadline, future in waiters:
            if deadline <= now and not future.done():
                self.failed += 1
                future.set_exception(errors.Timeout())
        return [waiter for waiter in waiters if waiter[0] > now]
