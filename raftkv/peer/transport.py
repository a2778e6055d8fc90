"""One ordered message stream per peer and direction (grpcio client, our own server on the other side).

Messages that arise in one turn of the loop leave together. Queues are bounded and drop the newest rather than block:
Raft repeats what matters, and an old message is worth more to order than a new one. Both sides name their cluster and
the member they mean; a stranger is refused.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import grpc
import grpc.aio

from raftkv import errors
from raftkv.pb import peer_pb2
from raftkv.peer import codec
from raftkv.raft import Message, NodeId
from raftkv.rpc import Context, Method

logger = logging.getLogger(__name__)

MESSAGES = "/raftkvpb.Peer/Messages"
CLUSTER_ID = "x-raftkv-cluster-id"
TO = "x-raftkv-to"

MAX_QUEUED_MESSAGES = 4096
MAX_WAITING_MESSAGES = 16
"""How many wait for a connection that is not there yet: what a new one should hear at once, no backlog."""
MAX_QUEUED_BYTES = 64 << 20
MAX_BATCH_BYTES = 1 << 20
BACKOFF_SECONDS = (0.05, 1.0)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class PeerTransport:
    """The streams of one member to all others, and its own receiving end."""

    def __init__(
        self,
        cluster_id: int,
        member_id: NodeId,
        peers: Mapping[NodeId, Sequence[str]],
        *,
        on_message: Callable[[Message], None],
        on_unreachable: Callable[[NodeId], None],
        rng: random.Random,
    ) -> None:
        """Connect lazily to `peers` (id to URLs); messages to ids that are not there are dropped."""
        self._member_id = member_id
        self._cluster_id = f"{cluster_id:016x}"
        self._on_message = on_message
        self._streams = {
            peer: _Stream(peer, urls, self._cluster_id, on_unreachable, rng)
            for peer, urls in peers.items()
            if peer != member_id
        }

    def start(self) -> None:
        """Begin to connect."""
        for stream in self._streams.values():
            stream.start()

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages; they leave at the end of this turn of the loop."""
        for message in messages:
            stream = self._streams.get(message.to)
            if stream is not None:
                stream.put(codec.encode(message))

    def methods(self) -> dict[str, Method]:
        """The receiving end, to be served on the peer port."""
        return {MESSAGES: Method.client_stream(self._receive)}

    async def _receive(self, batches: AsyncIterator[bytes], context: Context) -> bytes:
        if context.metadata.get(CLUSTER_ID) != self._cluster_id or context.metadata.get(TO) != f"{self._member_id:x}":
            logger.warning(
                "refused messages from %s: they are for member %s of cluster %s, this is member %x of cluster %s",
                context.peer,
                context.metadata.get(TO),
                context.metadata.get(CLUSTER_ID),
                self._member_id,
                self._cluster_id,
            )
            raise errors.ClusterIDMismatch
        async for batch in batches:
            for wire in peer_pb2.MessageBatch.FromString(batch).messages:
                self._on_message(codec.decode(wire))
        return b""

    async def close(self) -> None:
        """Drop what is queued and close the connections."""
        await asyncio.gather(*(stream.close() for stream in self._streams.values()))


class _Stream:
    """The outgoing stream to one peer.

    Invariants:
    1. `_bytes` is the size of `_queue`; both are bounded.
    2. A message that was handed to the connection is never sent again.
    """

    def __init__(
        self,
        peer: NodeId,
        urls: Sequence[str],
        cluster_id: str,
        on_unreachable: Callable[[NodeId], None],
        rng: random.Random,
    ) -> None:
        self._peer = peer
        self._targets = [urlsplit(url).netloc for url in urls]
        self._metadata = ((CLUSTER_ID, cluster_id), (TO, f"{peer:x}"))
        self._on_unreachable = on_unreachable
        self._rng = rng
        self._queue: list[peer_pb2.Message] = []
        self._bytes = 0
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reported = False
        self._connected = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def put(self, message: peer_pb2.Message) -> None:
        size = message.ByteSize()
        limit = MAX_QUEUED_MESSAGES if self._connected else MAX_WAITING_MESSAGES
        if len(self._queue) >= limit or self._bytes + size > MAX_QUEUED_BYTES:
            self._report()
            return
        self._queue.append(message)
        self._bytes += size
        self._filled.set()

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            self._on_unreachable(self._peer)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = BACKOFF_SECONDS[0]
        attempt = 0
        while True:
            target = self._targets[attempt % len(self._targets)]
            attempt += 1
            try:
                async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
                    await asyncio.wait_for(channel.channel_ready(), 5.0)
                    backoff = BACKOFF_SECONDS[0]
                    self._connected, self._reported = True, False
                    await self._pump(channel)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
                code = error.code() if isinstance(error, grpc.aio.AioRpcError) else error
                logger.info("lost the stream to member %x at %s: %s", self._peer, target, code)
            self._connected = False
            self._report()
            # What was meant for the lost connection is stale: Raft will say it anew.
            self._queue.clear()
            self._bytes = 0
            await asyncio.sleep(backoff * (0.5 + self._rng.random()))
            backoff = min(backoff * 2, BACKOFF_SECONDS[1])

    async def _pump(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_unary(MESSAGES)(metadata=self._metadata)
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                await call.write(self._take().SerializeToString())

    def _take(self) -> peer_pb2.MessageBatch:
        """Take from the front as much as one batch may hold, at least one message."""
        size = count = 0
        for message in self._queue:
            size += message.ByteSize()
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        self._bytes -= sum(message.ByteSize() for message in taken)
        return peer_pb2.MessageBatch(messages=taken)
