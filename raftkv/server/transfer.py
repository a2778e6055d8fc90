"""Moving leadership to a member of the caller's choice (thesis 3.10)."""

import asyncio

from raftkv import errors
from raftkv.raft import NodeId, Role
from raftkv.server.server import Server

POLL_SECONDS = 0.01


async def move_leader(server: Server, target: NodeId) -> None:
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
