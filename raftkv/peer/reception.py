"""Who calls: both sides of a call between members name the cluster, the sender and the member meant."""

import asyncio
import logging

from raftkv import errors
from raftkv.raft import NodeId
from raftkv.rpc import Context

logger = logging.getLogger(__name__)

CLUSTER_ID = "x-raftkv-cluster-id"
FROM = "x-raftkv-member-id"
TO = "x-raftkv-to"
REFUSAL_LOG_SECONDS = 60.0
REMOVED = "raftkv: the member has been permanently removed from the cluster"
"""How a member that was removed is answered, so that it hears of it."""


def call_metadata(cluster_id: int, sender: NodeId, to: NodeId) -> tuple[tuple[str, str], ...]:
    """What a caller says of itself and whom it means."""
    return ((CLUSTER_ID, f"{cluster_id:x}"), (FROM, f"{sender:x}"), (TO, f"{to:x}"))


class Reception:
    """Lets in who belongs to the cluster and means this member."""

    def __init__(self, cluster_id: int, member_id: NodeId) -> None:
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._refusals = Seldom(REFUSAL_LOG_SECONDS)

    def sender(self, context: Context) -> NodeId:
        """Whose call this is.

        Raises:
            ClusterIDMismatch: a stranger's, or one meant for another; logged once in a while.
        """
        cluster, sender, to = (_hexadecimal(context.metadata.get(name)) for name in (CLUSTER_ID, FROM, TO))
        if cluster == self._cluster_id and to == self._member_id and sender not in (0, self._member_id):
            return sender
        if self._refusals.allows((cluster, sender, to)):
            logger.warning(
                "refused messages of member %x of cluster %x, at %s, for member %x: this is member %x of cluster %x; "
                "check --initial-cluster and --initial-cluster-token of both",
                *(sender, cluster, context.peer, to),
                *(self._member_id, self._cluster_id),
            )
        raise errors.ClusterIDMismatch


class Seldom:
    """Lets the same event through once in a while, for log lines that would repeat."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: dict[object, float] = {}

    def allows(self, event: object) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._last.get(event, float("-inf")) < self._seconds:
            return False
        if len(self._last) >= 100:
            self._last.clear()
        self._last[event] = now
        return True


def _hexadecimal(value: str | bytes | None) -> int:
    """An id from metadata; 0, which no one has, for anything malformed."""
    try:
        return int(value, 16) if isinstance(value, str) and len(value) <= 16 else 0
    except ValueError:
        return 0
