"""Messages between members: one gRPC stream per peer and direction.

What is sent in one go leaves together. A stream has two lanes: `bulk` for what carries log entries
and `urgent` for the rest, which goes first, so that a heartbeat waits behind one batch at most. Each lane keeps its
order. (Raft tolerates any order, but an append that overtakes another is refused and costs a round trip.)

Sending never blocks and memory is bounded. A full lane drops the newest message: what is kept is then contiguous, and
Raft repeats what was lost. Without a connection the urgent lane drops the oldest instead, since only the latest vote
request or heartbeat is worth hearing. A loss is reported once, and not again until messages flow.

Both sides name the cluster, the sender and the member meant. A stranger is refused.
"""

import asyncio
import logging
import random
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from raftkv.histogram import Histogram, doubling
from raftkv.peer import codec
from raftkv.peer.call import Call
from raftkv.peer.dial import Dial
from raftkv.peer.reception import REFUSAL_LOG_SECONDS, REMOVED, Reception, Seldom, call_metadata
from raftkv.raft import AppendEntries, InstallSnapshot, Message, NodeId, Propose
from raftkv.rpc import Context, Method, Requests
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
LEAVE_SECONDS = 2.0
"""How long the streams of a member that was removed live on: it should hear of that by them."""

_BULK = (AppendEntries, Propose)


class PeerTransport:
    """The streams of one member to all others, and its own receiving end."""

    def __init__(
        self,
        cluster_id: int,
        member_id: NodeId,
        peers: Mapping[NodeId, Sequence[str]],
        *,
        on_messages: Callable[[*tuple[Message, ...]], None],
        on_unreachable: Callable[[NodeId], None],
        admit: Callable[[NodeId], Awaitable[None]],
        rng: random.Random,
        on_snapshot: Callable[[InstallSnapshot], None] = lambda _: None,
        is_removed: Callable[[NodeId], bool] = lambda _: False,
        on_removed: Callable[[], None] = lambda: None,
        dial: Dial | None = None,
    ) -> None:
        """Prepare streams to `peers` (id to URLs). The callbacks run in the event loop, never inside `send`.

        The exception is `on_snapshot`: it takes what does not go by these streams. `on_messages` takes as many as came
        together. `admit` is awaited before the first message of a stream is taken; what it raises ends the
        stream. Members that are removed are told so and not listened to; `on_removed` hears that another member says
        that of this one.
        """
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._on_messages = on_messages
        self._on_unreachable = on_unreachable
        self._admit = admit
        self.dial = dial or Dial()
        self._on_snapshot = on_snapshot
        self._is_removed = is_removed
        self.on_removed = on_removed
        self._leaving: dict[_Stream, asyncio.TimerHandle] = {}
        self._listening: dict[asyncio.Future[None], NodeId] = {}
        """The streams of others that are open: each ends when its future is done."""
        self._rng = rng
        self._streams: dict[NodeId, _Stream] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._started = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reception = Reception(cluster_id, member_id)
        self.sent_bytes: Counter[NodeId] = Counter()
        self.received_bytes: Counter[NodeId] = Counter()
        self.failures: Counter[NodeId] = Counter()
        """Streams to a peer that broke, or could not be made."""
        self.disconnections: Counter[NodeId] = Counter()
        """Of these, the streams that broke."""
        self.malformed: Counter[NodeId] = Counter()
        """Streams of a peer that ended with what was no message."""
        self.round_trips: defaultdict[NodeId, Histogram] = defaultdict(lambda: Histogram(doubling(0.0001, 16)))
        """How long pings on the stream to a peer took, in etcd's buckets."""
        self.update(peers)

    def start(self) -> None:
        """Begin to connect."""
        self._started = True
        for stream in self._streams.values():
            stream.start()

    def update(self, peers: Mapping[NodeId, Sequence[str]]) -> None:
        """Take the members now in force; a stream whose URLs changed is made anew, its queue is lost.

        A member that is gone hears what is queued for it, for a little while.
        """
        for peer in sorted(self._streams):
            if peer not in peers:
                stream = self._streams.pop(peer)
                timer = asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._leave, stream)
                self._leaving[stream] = timer
            elif self._streams[peer].urls != tuple(peers[peer]):
                self._retire(self._streams.pop(peer))
        for peer, urls in peers.items():
            if peer != self._member_id and peer not in self._streams:
                metadata = call_metadata(self._cluster_id, self._member_id, peer)
                stream = _Stream(peer, tuple(urls), metadata, self._on_unreachable, self._rng, self)
                self._streams[peer] = stream
                if self._started:
                    stream.start()

    def _leave(self, stream: "_Stream") -> None:
        del self._leaving[stream]
        self._retire(stream)
        for end, peer in self._listening.items():
            if peer == stream.peer and self._is_removed(peer) and not end.done():
                end.set_result(None)

    @property
    def connected(self) -> Mapping[NodeId, bool]:
        """Whether there is a stream to each peer."""
        return {peer: stream.connected for peer, stream in self._streams.items()}

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, those for one peer together. Those for strangers are dropped."""
        told: dict[_Stream, None] = {}
        for message in messages:
            stream = self._streams.get(message.to)
            if type(message) is InstallSnapshot:
                self._on_snapshot(message)
            elif stream is not None:
                stream.put(message)
                told[stream] = None
        for stream in told:
            stream.flush()

    def methods(self) -> dict[str, Method]:
        """The receiving end, to be served on the peer port."""
        return {MESSAGES: Method.client_stream(self.receive)}

    async def close(self) -> None:
        """Drop what is queued, close the connections and end the streams of others. Safe to call twice.

        Call it before the server of the peer port is stopped: that waits for streams to end.
        """
        if not self._closed.done():
            self._closed.set_result(None)
        for stream, timer in self._leaving.items():
            timer.cancel()
            self._retire(stream)
        self._leaving.clear()
        for stream in self._streams.values():
            self._retire(stream)
        self._streams.clear()
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _retire(self, stream: "_Stream") -> None:
        task = asyncio.ensure_future(stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def admit(self, context: Context) -> NodeId:
        """Whose call this is; a stranger's is refused."""
        sender = self._reception.sender(context)
        self._check_not_removed(sender)
        await self._admit(sender)
        return sender

    def _check_not_removed(self, sender: NodeId) -> None:
        if self._is_removed(sender):
            raise StatusError(Code.FAILED_PRECONDITION, REMOVED)

    async def receive(self, batches: Requests, context: Context) -> bytes:
        """Take the stream of another member: the handler of `MESSAGES`."""
        sender = await self.admit(context)
        reader = asyncio.ensure_future(batches.each(lambda batch: self._take_batch(batch, sender, context.peer)))
        expelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listening[expelled] = sender
        try:
            # A stream ends when the sender leaves or we do, so that our server need not wait for its end.
            await asyncio.wait((reader, self._closed, expelled), return_when=asyncio.FIRST_COMPLETED)
            self._check_not_removed(sender)
            if reader.done():
                reader.result()
        finally:
            del self._listening[expelled]
            reader.cancel()
        return b""

    def _take_batch(self, batch: bytes, sender: NodeId, address: str) -> None:
        self.received_bytes[sender] += len(batch)
        try:
            messages = [
                message
                for message in codec.decode_batch(batch)
                if message.to == self._member_id and message.sender == sender
            ]
        except DecodeError as error:
            self.malformed[sender] += 1
            logger.error("member %x at %s sends what is not a message: %s", sender, address, error)
            raise StatusError(Code.INVALID_ARGUMENT, "raftkv: malformed message batch") from error
        if messages:
            self._on_messages(*messages)


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
        counts: "PeerTransport",
    ) -> None:
        self.urls = urls
        self._counts = counts
        self.peer = peer
        self._metadata = metadata
        self._on_unreachable = on_unreachable
        self._rng = rng
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._bulk_bytes = 0
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None
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

    @property
    def connected(self) -> bool:
        return self._call is not None

    def flush(self) -> None:
        """Hand the connection what is queued, as long as it does not have to wait there."""
        call = self._call
        if call is None:
            return
        while (self._urgent or self._bulk) and not call.congested:
            call.write(self._take())
        if not call.congested:
            self._reported = False

    def _put_bulk(self, message: Message) -> None:
        # A message that is larger than the bound alone must pass, or the follower would never get it.
        full = self._bulk_bytes >= MAX_BULK_BYTES if self.connected else len(self._bulk) >= MAX_WAITING_MESSAGES
        if full:
            self._report()
            return
        chunk = codec.encode_framed(message)
        self._bulk.append(chunk)
        self._bulk_bytes += len(chunk)

    def _put_urgent(self, message: Message) -> None:
        if len(self._urgent) >= (MAX_URGENT_MESSAGES if self.connected else MAX_WAITING_MESSAGES):
            self._report()
            if self.connected:
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
        self._counts.sent_bytes[self.peer] += size
        return b"".join(taken)

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            # Not from within `put`: the caller may be in the middle of handing out messages.
            asyncio.get_running_loop().call_soon(self._on_unreachable, self.peer)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        attempt = 0
        backoff, longest = BACKOFF_SECONDS
        while True:
            url = self.urls[attempt % len(self.urls)]
            target = urlsplit(url).netloc
            attempt += 1
            try:
                problem = await self._connect_and_send(url, target)
            except Exception as error:
                # Whatever became of this connection, the next may work; without one the member is cut off.
                logger.warning("the stream to member %x broke", self.peer, exc_info=True)
                problem = str(error)
            was_connected, self._call = self.connected, None
            if was_connected:
                backoff = BACKOFF_SECONDS[0]
            level = logging.INFO if was_connected or attempt <= len(self.urls) else logging.DEBUG
            logger.log(level, "no stream to member %x at %s: %s", self.peer, target, problem)
            self._counts.failures[self.peer] += 1
            self._report()
            if was_connected:
                self._counts.disconnections[self.peer] += 1
                self._forget()
            await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.5))
            backoff = min(backoff * 2, longest)

    def _forget(self) -> None:
        """Drop what was meant for a lost connection: it is stale, Raft says it anew."""
        self._urgent.clear()
        self._bulk.clear()
        self._bulk_bytes = 0

    async def _connect_and_send(self, url: str, target: str) -> str:
        """Serve one connection until it ends; why it ended."""
        observe = self._counts.round_trips[self.peer].observe
        call = Call(MESSAGES, target, self._metadata, self.flush, observe)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._counts.dial.connect(url, call)
                await asyncio.wait((call.ready, call.ended), return_when=asyncio.FIRST_COMPLETED)
            if not call.ended.done():
                logger.info("connected to member %x at %s", self.peer, target)
                self._call = call
                self.flush()
            # Shielded: a cancelled task cancels what it awaits, and a call that counts as ended is not closed.
            code, details = await asyncio.shield(call.ended)
        except TimeoutError:
            return f"no answer within {CONNECT_SECONDS:g} s"
        except OSError as error:
            return str(error)
        finally:
            call.close()
        if code in (Code.FAILED_PRECONDITION, Code.UNAVAILABLE):
            # It is there, and does not want us, or not yet: it is asked again ever more seldom.
            self._call = None
            self._forget()
        if (code, details) == (Code.FAILED_PRECONDITION, REMOVED):
            self._counts.on_removed()
        elif code == Code.FAILED_PRECONDITION and self._refusals.allows(target):
            logger.warning(
                "member %x at %s refuses this member's messages: %s; "
                "check --initial-cluster and --initial-cluster-token of both",
                *(self.peer, target, details),
            )
        if code == Code.OK:
            return "the member ended it, as it does when it stops"
        return details if code is None else f"{Code(code).name}: {details}"
