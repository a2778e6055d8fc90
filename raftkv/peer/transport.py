"""Messages between members: one stream per peer and direction (grpcio client here, raftkv's own server there).

What arises in one turn of the event loop leaves together. A stream has two lanes: `bulk` for what carries log entries
and `urgent` for the rest, which goes first, so that a heartbeat waits behind one batch at most. Each lane keeps its
order. (Raft tolerates any order, but an append that overtakes another is refused and costs a round trip.)

Sending never blocks and memory is bounded. A full lane drops the newest message: what is kept is then contiguous, and
Raft repeats what was lost. Without a connection the urgent lane drops the oldest instead, since only the latest vote
request or heartbeat is worth hearing. A loss is reported once, and not again until messages flow.

Both sides name the cluster, the sender and the member meant. A stranger is refused.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from raftkv.peer import codec
from raftkv.peer.reception import REFUSAL_LOG_SECONDS, Reception, Seldom, call_metadata
from raftkv.raft import AppendEntries, InstallSnapshot, Message, NodeId, Propose
from raftkv.rpc import Context, Method
from raftkv.status import Code, StatusError

logger = logging.getLogger(__name__)

MESSAGES = "/raftkvpb.Peer/Messages"

MAX_BULK_BYTES = 64 << 20
MAX_URGENT_MESSAGES = 4096
MAX_WAITING_MESSAGES = 16
"""How many of each lane wait for a connection that is not there yet."""
MAX_BATCH_BYTES = 1 << 20
CONNECT_SECONDS = 5.0
"""How long one URL is tried before the next."""
BACKOFF_SECONDS = (0.05, 1.0)

_BULK = (AppendEntries, Propose, InstallSnapshot)

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted member is found within a second. The minimum is not a pause but how long one attempt may take.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),
    # A member that vanished without a word is noticed, and the connection made anew when it is back.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
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
        admit: Callable[[NodeId], Awaitable[None]],
        rng: random.Random,
    ) -> None:
        """Prepare streams to `peers` (id to URLs). The callbacks run in the event loop, never inside `send`.

        `admit` is awaited before the first message of a stream is taken; what it raises ends the stream.
        """
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._on_message = on_message
        self._on_unreachable = on_unreachable
        self._admit = admit
        self._rng = rng
        self._streams: dict[NodeId, _Stream] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._started = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reception = Reception(cluster_id, member_id)
        self.update(peers)

    def start(self) -> None:
        """Begin to connect."""
        self._started = True
        for stream in self._streams.values():
            stream.start()

    def update(self, peers: Mapping[NodeId, Sequence[str]]) -> None:
        """Take the members now in force; a stream whose URLs changed is made anew, its queue is lost."""
        for peer in sorted(self._streams):
            if peer not in peers or self._streams[peer].urls != tuple(peers[peer]):
                self._retire(self._streams.pop(peer))
        for peer, urls in peers.items():
            if peer != self._member_id and peer not in self._streams:
                metadata = call_metadata(self._cluster_id, self._member_id, peer)
                stream = _Stream(peer, tuple(urls), metadata, self._on_unreachable, self._rng)
                self._streams[peer] = stream
                if self._started:
                    stream.start()

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages; they leave at the end of this turn of the loop. Those for strangers are dropped."""
        for message in messages:
            stream = self._streams.get(message.to)
            if stream is not None:
                stream.put(message)

    def methods(self) -> dict[str, Method]:
        """The receiving end, to be served on the peer port."""
        return {MESSAGES: Method.client_stream(self.receive)}

    async def close(self) -> None:
        """Drop what is queued, close the connections and end the streams of others. Safe to call twice.

        Call it before the server of the peer port is stopped: that waits for streams to end.
        """
        if not self._closed.done():
            self._closed.set_result(None)
        for stream in self._streams.values():
            self._retire(stream)
        self._streams.clear()
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _retire(self, stream: "_Stream") -> None:
        task = asyncio.ensure_future(stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def receive(self, batches: AsyncIterator[bytes], context: Context) -> bytes:
        """Take the stream of another member: the handler of `MESSAGES`."""
        sender = self._reception.sender(context)
        await self._admit(sender)
        reader = asyncio.ensure_future(self._read(batches, sender, context.peer))
        try:
            # A stream ends when the sender leaves or we do, so that our server need not wait for its end.
            await asyncio.wait((reader, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
        return b""

    async def _read(self, batches: AsyncIterator[bytes], sender: NodeId, address: str) -> None:
        try:
            async for batch in batches:
                for message in codec.decode_batch(batch):
                    if message.to == self._member_id and message.sender == sender:
                        self._on_message(message)
        except DecodeError as error:
            logger.error("member %x at %s sends what is not a message: %s", sender, address, error)
            raise StatusError(Code.INVALID_ARGUMENT, "raftkv: malformed message batch") from error


class _Stream:
    """The outgoing stream to one peer.

    Invariants:
    1. `_bulk_bytes` is the size of what `_bulk` holds; both lanes are bounded.
    2. A message handed to a connection is never sent again.
    3. `_reported` is true from the first loss until a connection has taken everything queued.
    """

    def __init__(
        self,
        peer: NodeId,
        urls: tuple[str, ...],
        metadata: Sequence[tuple[str, str]],
        on_unreachable: Callable[[NodeId], None],
        rng: random.Random,
    ) -> None:
        self.urls = urls
        self._peer = peer
        self._metadata = metadata
        self._on_unreachable = on_unreachable
        self._rng = rng
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._bulk_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connected = False
        self._reported = False
        self._refusals = Seldom(REFUSAL_LOG_SECONDS)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def put(self, message: Message) -> None:
        if isinstance(message, _BULK):
            self._put_bulk(message)
        else:
            self._put_urgent(message)
        self._wake.set()

    def _put_bulk(self, message: Message) -> None:
        # A message that is larger than the bound alone must pass, or the follower would never get it.
        full = self._bulk_bytes >= MAX_BULK_BYTES if self._connected else len(self._bulk) >= MAX_WAITING_MESSAGES
        if full:
            self._report()
            return
        chunk = codec.encode_framed(message)
        self._bulk.append(chunk)
        self._bulk_bytes += len(chunk)

    def _put_urgent(self, message: Message) -> None:
        if len(self._urgent) >= (MAX_URGENT_MESSAGES if self._connected else MAX_WAITING_MESSAGES):
            self._report()
            if self._connected:
                return
            self._urgent.popleft()
        self._urgent.append(codec.encode_framed(message))

    def _take(self) -> bytes:
        """Take one batch from the front of the lanes: as much as fits, at least one message."""
        taken: list[bytes] = []
        size = 0
        for lane in (self._urgent, self._bulk):
            while lane and (not taken or size + len(lane[0]) <= MAX_BATCH_BYTES):
                chunk = lane.popleft()
                taken.append(chunk)
                size += len(chunk)
                if lane is self._bulk:
                    self._bulk_bytes -= len(chunk)
        return b"".join(taken)

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            # Not from within `put`: the caller may be in the middle of handing out messages.
            asyncio.get_running_loop().call_soon(self._on_unreachable, self._peer)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        attempt = 0
        backoff, longest = BACKOFF_SECONDS
        while True:
            target = urlsplit(self.urls[attempt % len(self.urls)]).netloc
            attempt += 1
            try:
                problem = await self._connect_and_send(target)
            except Exception as error:
                # Whatever became of this connection, the next may work; without one the member is cut off.
                logger.warning("the stream to member %x broke", self._peer, exc_info=True)
                problem = str(error)
            was_connected, self._connected = self._connected, False
            if was_connected:
                backoff = BACKOFF_SECONDS[0]
            level = logging.INFO if was_connected or attempt <= len(self.urls) else logging.DEBUG
            logger.log(level, "no stream to member %x at %s: %s", self._peer, target, problem)
            self._forget()
            await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.5))
            backoff = min(backoff * 2, longest)

    def _forget(self) -> None:
        """Drop what was meant for a lost connection: it is stale, Raft says it anew."""
        self._report()
        self._urgent.clear()
        self._bulk.clear()
        self._bulk_bytes = 0

    async def _connect_and_send(self, target: str) -> str:
        """Serve one connection until it ends; why it ended."""
        async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await channel.channel_ready()
            except TimeoutError:
                return f"no answer within {CONNECT_SECONDS:g} s"
            logger.info("connected to member %x at %s", self._peer, target)
            method = channel.stream_unary(MESSAGES, request_serializer=None, response_deserializer=None)
            call = method(None, metadata=self._metadata)
            call.add_done_callback(lambda _: self._wake.set())
            self._connected = True
            # The call may end while a message is being written; its status says why.
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await self._send_all(call)
            code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            # It is there, and does not want us.
            self._connected = False
            if self._refusals.allows(target):
                logger.warning(
                    "member %x at %s refuses this member's messages: %s; "
                    "check --initial-cluster and --initial-cluster-token of both",
                    *(self._peer, target, details),
                )
        return f"{code.name}: {details}"

    async def _send_all(self, call: grpc.aio.StreamUnaryCall[bytes, bytes]) -> None:
        """Send whatever is queued until the call ends."""
        while not call.done():
            while self._urgent or self._bulk:
                await call.write(self._take())
            self._reported = False
            self._wake.clear()
            if not call.done():
                await self._wake.wait()
