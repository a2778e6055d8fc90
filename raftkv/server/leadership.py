"""Who leads, for those who wait for a leader, and those who want nothing of a member that knows of none."""

import asyncio
import logging
from typing import Any

from raftkv import errors
from raftkv.raft import NodeId, RaftNode

logger = logging.getLogger(__name__)


class Leadership:
    """What a member has heard of its leaders."""

    __slots__ = (
        "_leaderless_seconds",
        "_led_by",
        "_loop",
        "_lost_at",
        "_node",
        "_timeout_seconds",
        "_waiters",
        "calls",
        "changes",
    )

    def __init__(self, node: RaftNode, *, timeout_seconds: float, leaderless_seconds: float) -> None:
        """`timeout_seconds` bounds a proposal; `leaderless_seconds` is how long `calls` do without a leader."""
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._timeout_seconds = timeout_seconds
        self._leaderless_seconds = leaderless_seconds
        self.changes = 0
        """Leaders seen, for metrics."""
        # Not a set: calls end in the order in which they came, the same in every run.
        self.calls: dict[Any, None] = {}
        """Ends calls under way that want no member without a leader."""
        self._led_by = 0
        self._lost_at = float("-inf")
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait until a leader is known."""
        if not self._node.leader:
            future = self._loop.create_future()
            self._waiters.append(future)
            await future

    def changed(self, leader: NodeId) -> None:
        """Hear who leads now; 0: nobody."""
        if leader:
            self.changes += leader != self._led_by
            logger.info("member %x follows leader %x in term %d", self._node.id, leader, self._node.term)
            waiters, self._waiters = self._waiters, []
            for future in waiters:
                if not future.done():
                    future.set_result(None)
        else:
            self._lost_at = self._loop.time()
            logger.info("member %x has no leader in term %d", self._node.id, self._node.term)
        self._led_by = leader

    def tick(self, now: float) -> None:
        """End `calls` when there has been no leader for too long."""
        if self.calls and not self._node.leader and now - self._lost_at >= self._leaderless_seconds:
            ends = list(self.calls)
            self.calls.clear()
            for end in ends:
                end(errors.NoLeader())

    def timeout_error(self) -> errors.EtcdError:
        """What a proposal that has waited too long ends in."""
        if self._loop.time() - self._lost_at < self._timeout_seconds:
            return errors.TimeoutDueToLeaderFail()
        return errors.Timeout()
