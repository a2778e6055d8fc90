"""A store on its way to a follower that needs more than the log holds.

The stream has a connection of its own, so that messages never wait behind it, and is paced, so that they need not
share the line with a burst. Both sides read ahead by little: memory does not grow with the store. A stream that ends
early is begun anew, by whoever leads then.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from raftkv.pb import peer_pb2
from raftkv.peer import codec
from raftkv.peer.call import Call
from raftkv.peer.dial import Dial
from raftkv.raft import InstallSnapshot, NodeId
from raftkv.rpc import Requests
from raftkv.status import Code, StatusError

SNAPSHOT = "/raftkvpb.Peer/Snapshot"

CHUNK_BYTES = 256 << 10
CONNECT_SECONDS = 5.0
INSTALL_SECONDS = 600.0
"""How long the receiver may take to load a store that has arrived; that it lives, pings tell."""


async def send_snapshot(
    url: str,
    metadata: Sequence[tuple[str, str]],
    message: InstallSnapshot,
    size_bytes: int,
    read: Callable[[int, int], Awaitable[bytes]],
    *,
    bytes_per_second: float,
    dial: Dial | None = None,
) -> None:
    """Send a message and the file it stands for; when this returns the receiver has installed it.

    `read` gives bytes of the file: offset and length.

    Raises:
        ConnectionError: the stream ended early, or the receiver could not use it.
    """
    writable = asyncio.Event()
    call = Call(SNAPSHOT, urlsplit(url).netloc, metadata, writable.set)
    call.ended.add_done_callback(lambda _: writable.set())
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await (dial or Dial()).connect(url, call)
            await asyncio.wait((call.ready, call.ended), return_when=asyncio.FIRST_COMPLETED)
        head = peer_pb2.SnapshotPart(message=codec.encode(message), size=size_bytes)
        call.write(head.SerializeToString())
        await _send_data(call, writable, size_bytes, read, bytes_per_second)
        async with asyncio.timeout(INSTALL_SECONDS):
            code, details = await call.ended
    except TimeoutError as error:
        raise ConnectionError(f"{url} does not answer") from error
    finally:
        call.close()
    if code != Code.OK:
        raise ConnectionError(details if code is None else f"{Code(code).name}: {details}")


async def _send_data(
    call: Call, writable: asyncio.Event, size_bytes: int, read: Callable[[int, int], Awaitable[bytes]], rate: float
) -> None:
    loop = asyncio.get_running_loop()
    digest = hashlib.sha256()
    started = loop.time()
    offset = 0
    while offset < size_bytes and not call.ended.done():
        data = await read(offset, CHUNK_BYTES)
        offset += len(data)
        digest.update(data)
        call.write(peer_pb2.SnapshotPart(data=data).SerializeToString())
        while call.congested and not call.ended.done():
            writable.clear()
            await writable.wait()
        await asyncio.sleep(max(0.0, started + offset / rate - loop.time()))
    call.write(peer_pb2.SnapshotPart(hash=digest.digest()).SerializeToString())


class Sink(Protocol):
    """Where a store that arrives is put."""

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> None:
        """Everything has arrived, and is what was sent: keep it and go on from it."""

    def abandon(self) -> None:
        """No more will come; safe to call in any state."""


async def receive_snapshot(
    parts: Requests, sender: NodeId, member_id: NodeId, begin: Callable[[InstallSnapshot], Sink]
) -> bytes:
    """Take a store that another member sends; the encoded answer.

    Raises:
        StatusError: what arrived is not what was sent; or as the sink does.
    """
    try:
        head = peer_pb2.SnapshotPart.FromString(await anext(aiter(parts), b""))
        message = codec.decode(head.message)
    except (DecodeError, ValueError) as error:
        raise StatusError(Code.INVALID_ARGUMENT, "raftkv: malformed snapshot") from error
    if not isinstance(message, InstallSnapshot) or message.sender != sender or message.to != member_id:
        raise StatusError(Code.INVALID_ARGUMENT, "raftkv: the snapshot's message is not for this member")
    sink = begin(message)
    try:
        digest = hashlib.sha256()
        left = head.size
        async for encoded in parts:
            part = peer_pb2.SnapshotPart.FromString(encoded)
            if part.hash:
                if left or part.hash != digest.digest():
                    raise StatusError(Code.DATA_LOSS, "raftkv: the snapshot was damaged on its way")
                await sink.finish()
                return peer_pb2.SnapshotInstalled().SerializeToString()
            left -= len(part.data)
            if left < 0:
                break
            digest.update(part.data)
            await sink.write(part.data)
    except DecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, "raftkv: malformed snapshot") from error
    finally:
        sink.abandon()
    raise StatusError(Code.DATA_LOSS, "raftkv: the snapshot is not as long as was said")
