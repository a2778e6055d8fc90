"""Questions between members: unary calls, for what is answered by one member and is no part of consensus.

They have a connection of their own: a question may be slow, and messages must not wait behind it.
"""

from collections.abc import Callable, Mapping, Sequence

from raftkv import errors
from raftkv.peer.asking import Asking
from raftkv.peer.dial import Dial
from raftkv.peer.reception import call_metadata
from raftkv.raft import NodeId
from raftkv.status import Code, StatusError

_NOT_LEADER = (Code.FAILED_PRECONDITION, errors.NotLeader.TEXT)


class PeerCalls:
    """Calls methods of other members."""

    def __init__(
        self,
        cluster_id: int,
        member_id: NodeId,
        peers: Callable[[], Mapping[NodeId, Sequence[str]]],
        dial: Dial | None = None,
    ) -> None:
        """`peers` gives the members now in force (id to URLs)."""
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._peers = peers
        self._asking = Asking(dial or Dial())
        self._attempts = 0

    async def call(self, peer: NodeId, path: str, request: bytes, timeout: float) -> bytes:
        """Call a method of a member; `timeout` in seconds.

        Raises:
            NotLeader: that member says that it does not lead.
            ConnectionError: no answer, or one that is no use.
        """
        urls = self._peers().get(peer)
        if not urls:
            raise ConnectionError(f"member {peer:x} is not known")
        url = urls[self._attempts % len(urls)]
        metadata = call_metadata(self._cluster_id, self._member_id, peer)
        try:
            return await self._asking.ask(url, path, request, metadata, timeout=timeout)
        except StatusError as error:
            if (error.code, error.message) == _NOT_LEADER:
                raise errors.NotLeader from error
            problem = f"{error.code.name}: {error.message}"
        except OSError as error:
            problem = str(error)
        self._attempts += 1
        raise ConnectionError(f"member {peer:x} at {url}: {problem}")

    async def close(self) -> None:
        """Close all connections; calls under way end in ConnectionError."""
        self._asking.close()
