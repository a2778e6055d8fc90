"""What a member is in its own cluster: a voter, a learner, or removed."""

import asyncio
import logging

from raftkv.raft import RaftNode
from raftkv.server.membership import Membership

logger = logging.getLogger(__name__)


class Standing:
    """A member's own place; `removed` is done when it has none any more, and never will have."""

    __slots__ = ("_membership", "_node", "learner", "removed")

    def __init__(self, node: RaftNode, membership: Membership) -> None:
        self._node = node
        self._membership = membership
        self.removed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.learner = False
        """Whether this member does not vote, nor serves what voters serve."""
        self.update()

    def update(self) -> None:
        """Look at the members now in force."""
        conf_state = self._node.conf_state
        self.learner = self._node.id not in (*conf_state.voters, *conf_state.voters_outgoing)
        if self._membership.is_removed(self._node.id):
            self.told_removed()

    def told_removed(self) -> None:
        """The log, or another member that has applied it, says that this member was removed."""
        if not self.removed.done():
            logger.warning("member %x has been removed from the cluster", self._node.id)
            self.removed.set_result(None)
