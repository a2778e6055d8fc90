"""Questions between members: unary calls, for what is answered by one member and is no part of consensus.

They have a connection of their own: a question may be slow, and messages must not wait behind it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import grpc
import grpc.aio

from raftkv import errors
from raftkv.peer.dial import Channels, Dial
from raftkv.peer.reception import call_metadata
from raftkv.raft import NodeId

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted member is found within a second. The minimum is how long one attempt may take.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_NOT_LEADER = (grpc.StatusCode.FAILED_PRECONDITION, errors.NotLeader.TEXT)


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
        self._channels = Channels(dial or Dial(), _CHANNEL_OPTIONS)
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
            async with asyncio.timeout(timeout):
                channel = await self._channels.get(url)
            method = channel.unary_unary(path, request_serializer=None, response_deserializer=None)
            answer: bytes = await method(request, timeout=timeout, metadata=metadata, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            if (error.code(), error.details()) == _NOT_LEADER:
                raise errors.NotLeader from error
            self._attempts += 1
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._channels.failed(url)
            raise ConnectionError(f"member {peer:x} at {url}: {error.code().name}: {error.details()}") from error
        except OSError as error:
            self._attempts += 1
            raise ConnectionError(f"member {peer:x} at {url}: {error}") from error
        return answer

    async def close(self) -> None:
        """Close all connections; calls under way end in ConnectionError."""
        await self._channels.close()
