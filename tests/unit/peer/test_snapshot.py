"""A store over a real connection: it arrives whole, or not at all."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from raftkv.http import HttpServer, listen
from raftkv.peer import SNAPSHOT, snapshot
from raftkv.peer.snapshot import receive_snapshot, send_snapshot
from raftkv.raft import ConfState, InstallSnapshot, SnapshotMetadata
from raftkv.rpc import App, Context, Method, Requests

MESSAGE = InstallSnapshot(1, 2, 7, SnapshotMetadata(index=90, term=6, conf_state=ConfState(voters=(1, 2, 3))))
FILE = random.Random(3).randbytes(3_000_000)
FAST = 1e12
BOUND_SECONDS = 90.0


class Sink:
    """Remembers what arrived and what became of it."""

    def __init__(self, message: InstallSnapshot) -> None:
        self.message = message
        self.data = b""
        self.finished = self.abandoned = False

    async def write(self, data: bytes) -> None:
        self.data += data

    async def finish(self) -> None:
        self.finished = True

    def abandon(self) -> None:
        self.abandoned = True


def transfer(test: Callable[[str, list[Sink]], Awaitable[None]], *, member_id: int = 2) -> None:
    """Run a test with the URL of a receiver and the sinks it makes."""

    async def main() -> None:
        sinks: list[Sink] = []

        def begin(message: InstallSnapshot) -> Sink:
            sinks.append(Sink(message))
            return sinks[-1]

        async def receive(parts: Requests, context: Context) -> bytes:
            return await receive_snapshot(parts, 1, member_id, begin)

        listener = listen("127.0.0.1", 0)
        app = App({SNAPSHOT: Method.client_stream(receive)}, max_receive_bytes=1 << 30)
        server = HttpServer(app, listener, max_concurrent_streams=100)
        await server.start()
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                await test(f"http://127.0.0.1:{listener.getsockname()[1]}", sinks)
        finally:
            await server.stop()
            listener.close()

    asyncio.run(main())


async def read(offset: int, length: int) -> bytes:
    return FILE[offset : offset + length]


def test_a_store_arrives_as_it_was_sent() -> None:
    async def test(url: str, sinks: list[Sink]) -> None:
        await send_snapshot(url, (), MESSAGE, len(FILE), read, bytes_per_second=FAST)
        (sink,) = sinks
        assert (sink.message, sink.finished, sink.data) == (MESSAGE, True, FILE)

    transfer(test)


def test_a_store_damaged_on_its_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = snapshot.peer_pb2.SnapshotPart

    def damaged(**fields: object) -> object:
        if fields.get("data") == FILE[: snapshot.CHUNK_BYTES]:
            fields["data"] = b"X" + FILE[1 : snapshot.CHUNK_BYTES]
        return encode(**fields)  # type: ignore[arg-type]

    damaged.FromString = encode.FromString  # type: ignore[attr-defined]
    monkeypatch.setattr(snapshot.peer_pb2, "SnapshotPart", damaged)

    async def test(url: str, sinks: list[Sink]) -> None:
        with pytest.raises(ConnectionError, match="DATA_LOSS"):
            await send_snapshot(url, (), MESSAGE, len(FILE), read, bytes_per_second=FAST)
        assert not sinks[0].finished
        assert sinks[0].abandoned

    transfer(test)


@pytest.mark.parametrize("said", [len(FILE) - 1, len(FILE) + 1])
def test_a_store_that_is_not_as_long_as_was_said_is_refused(said: int) -> None:
    async def misread(offset: int, length: int) -> bytes:
        return FILE[offset : offset + length] if offset < len(FILE) - 1 else b"more than there is"

    async def test(url: str, sinks: list[Sink]) -> None:
        with pytest.raises(ConnectionError, match="DATA_LOSS"):
            await send_snapshot(url, (), MESSAGE, said, misread if said > len(FILE) else read, bytes_per_second=FAST)
        assert not sinks[0].finished

    transfer(test)


def test_a_store_for_another_member_is_refused() -> None:
    async def test(url: str, sinks: list[Sink]) -> None:
        with pytest.raises(ConnectionError, match="INVALID_ARGUMENT"):
            await send_snapshot(url, (), MESSAGE, len(FILE), read, bytes_per_second=FAST)
        assert not sinks

    transfer(test, member_id=3)


def test_a_sender_that_goes_away_leaves_nothing_finished() -> None:
    async def test(url: str, sinks: list[Sink]) -> None:
        async def stall(offset: int, length: int) -> bytes:
            if offset:
                while not (sinks and sinks[0].data):
                    await asyncio.sleep(0.01)
                raise OSError("the disk of the sender fails")
            return await read(offset, length)

        with pytest.raises(OSError, match="of the sender"):
            await send_snapshot(url, (), MESSAGE, len(FILE), stall, bytes_per_second=FAST)
        while not (sinks and sinks[0].abandoned):
            await asyncio.sleep(0.01)
        assert not sinks[0].finished

    transfer(test)


def test_sending_is_no_faster_than_was_said() -> None:
    async def test(url: str, sinks: list[Sink]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await send_snapshot(url, (), MESSAGE, len(FILE), read, bytes_per_second=6_000_000)
        assert loop.time() - started >= 0.5

    transfer(test)
