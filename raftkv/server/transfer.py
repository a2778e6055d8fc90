"""Moving leadership to another member (thesis 3.10)."""

import asyncio
import logging
from typing import TYPE_CHECKING

from raftkv import errors
from raftkv.raft import NodeId, Role

if TYPE_CHECKING:
    from raftkv.server.server import Server

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.01
HAND_OVER_SECONDS = 1.0


async def move_leader(server: "Server", target: NodeId) -> None:
    """Hand leadership to a voter and wait until this member follows it; to itself: nothing to do.

    Raises:
        NotLeader: this member does not lead.
        BadLeaderTransferee: the target is no voter.
        TimeoutLeaderTransfer: it did not take over in the time of a request; Raft has given up long before.
    """
    node = server.node
    if node.role is not Role.LEADER:
        raise errors.NotLeader
    if target not in node.conf_state.voters:
        raise errors.BadLeaderTransferee
    loop = asyncio.get_running_loop()
    deadline = loop.time() + server.proposals.timeout_seconds
    node.transfer_leader(target)
    server.wake()
    while node.leader != target:
        if loop.time() >= deadline:
            raise errors.TimeoutLeaderTransfer
        await asyncio.sleep(POLL_SECONDS)


async def hand_over(server: "Server") -> None:
    """Give leadership to the most advanced voter, if we lead, and wait for it a little."""
    node = server.node
    if server.failed.done() or node.role is not Role.LEADER:
        return
    matched = node.status().match_indexes
    # One that was lost a moment ago may have as much of the log as any, and cannot take over.
    gone = {node.id, *server.silent}
    candidates = {voter: matched.get(voter, 0) for voter in node.conf_state.voters if voter not in gone}
    if not candidates:
        return
    target = max(sorted(candidates), key=candidates.__getitem__)
    logger.info("handing leadership over to %x", target)
    node.transfer_leader(target)
    server.wake()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HAND_OVER_SECONDS
    while node.leader in (0, node.id) and loop.time() < deadline:
        await asyncio.sleep(POLL_SECONDS)
