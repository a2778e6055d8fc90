"""Random and mutated bytes: a connection answers or ends, never raises, never hangs, and keeps little."""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv.http import frames
from raftkv.http.asgi import Receive, Scope, Send
from tests.unit.http import test_http1
from tests.unit.http.memory import GET, POST, App, Client, plain, read_all, turns

KINDS = st.one_of(st.integers(0, 11), st.integers(0, 255))
STREAMS = st.one_of(st.integers(0, 9), st.just(frames.MAX_WINDOW), st.integers(0, (1 << 32) - 1))
BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"\x82\x86\x84", b"\x83\x86\x84\x40\x01n\x01v", b"\x82\x86\x84\xbe", b"\x20", b"\x3f\xe1\x1f\x82"]
    ),
    st.lists(st.sampled_from([b"\x82", b"\x84", b"\x86", b"\xbe", b"\x41\x01x", b"\0\x01a\x01b"])).map(b"".join),
)
PAYLOADS = st.one_of(
    BLOCKS, st.binary(max_size=300), st.integers(0, 20_000).map(bytes), st.sampled_from([bytes(4), bytes(5), bytes(8)])
)
SETTINGS = st.lists(st.tuples(st.integers(0, 8), st.one_of(st.integers(0, 70_000), st.integers(0, (1 << 32) - 1))))
FRAMES = st.one_of(
    st.builds(frames.frame, KINDS, st.integers(0, 255), STREAMS, PAYLOADS),
    st.builds(frames.frame, st.just(frames.HEADERS), st.sampled_from([4, 5]), st.integers(0, 20), BLOCKS),
    st.builds(frames.frame, st.just(frames.DATA), st.sampled_from([0, 1, 8]), st.integers(0, 20), PAYLOADS),
    st.builds(frames.number, st.just(frames.WINDOW_UPDATE), st.integers(0, 20), st.integers(0, 1 << 31)),
    st.builds(frames.number, st.just(frames.RST_STREAM), st.integers(0, 20), st.integers(0, 20)),
    SETTINGS.map(frames.settings),
    st.binary(max_size=30),
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


async def mixed(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads, or does not; answers little, or much."""
    kind = len(scope["headers"]) % 3
    if kind == 0:
        await read_all(scope, receive, send)
    else:
        await plain(b"x" * (100_000 if kind == 1 else 1))(scope, receive, send)


async def converse(pieces: list[bytes]) -> None:
    """Say this; then the connection must have ended, or still answer a ping, and leave nothing when it is lost."""
    app = App(mixed)
    client = Client(app)
    for piece in pieces:
        client.send(piece)
        await turns(1)
    await turns(3)
    connection = client.connection
    if not client.transport.ended and not connection._received and not connection._block_of:
        client.received()
        client.send(frames.frame(frames.PING, 0, 0, b"are you "))
        await turns()
        assert any(f.kind == frames.PING and f.payload == b"are you " for f in client.received())
    client.received()
    assert len(connection._received) < frames.FRAME_BYTES + 9
    client.transport.abort()
    await turns(10)
    assert (client.forgotten, app.ended) == (1, len(app.requests))
    assert not connection._streams
    assert not connection._running


@QUICK
@given(st.lists(FRAMES, max_size=30))
def test_random_frames(said: list[bytes]) -> None:
    asyncio.run(asyncio.wait_for(converse(said), 90))


@QUICK
@given(st.lists(FRAMES, max_size=12), st.randoms(use_true_random=False))
def test_random_frames_torn_anywhere(said: list[bytes], rng: random.Random) -> None:
    data, pieces = b"".join(said), []
    while data:
        cut = rng.choice([1, 2, 9, 10, 1000])
        pieces.append(data[:cut])
        data = data[cut:]
    asyncio.run(asyncio.wait_for(converse(pieces), 90))


def conversation(client: Client) -> bytes:
    """What a decent client says."""
    return b"".join(
        [
            client.headers(1, GET),
            client.headers(3, [*POST, ("content-length", "5")], end=False),
            frames.frame(frames.DATA, frames.END_STREAM, 3, b"hello"),
            frames.frame(frames.DATA, 0x8, 3, b"\x03late\0\0\0"),
            frames.settings([(frames.INITIAL_WINDOW_SIZE, 100), (frames.HEADER_TABLE_SIZE, 0)]),
            client.headers(5, [*GET, ("x", "y")]),
            frames.number(frames.WINDOW_UPDATE, 5, 100_000),
            frames.number(frames.WINDOW_UPDATE, 0, 100_000),
            frames.frame(frames.PING, 0, 0, bytes(8)),
            client.headers(7, POST, end=False),
            frames.number(frames.RST_STREAM, 7, 8),
            frames.frame(frames.HEADERS, 0, 9, b"\x82\x86"),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 9, b"\x84"),
        ]
    )


def test_a_conversation_split_at_every_byte_is_answered_alike() -> None:
    async def answers(cut: int | None) -> list[tuple[int, int, bytes]]:
        client = Client(App(mixed))
        data = conversation(client)
        if cut is None:
            for byte in data:
                client.send(bytes([byte]))
        else:
            client.send(data[:cut])
            client.send(data[cut:])
        await turns(10)
        assert not client.transport.ended
        found = client.received()
        blocks = [(f.stream, f.kind, f.payload) for f in found if f.kind in (frames.HEADERS, frames.RST_STREAM)]
        sizes: dict[int, bytes] = {}
        for frame in found:
            if frame.kind == frames.DATA:
                sizes[frame.stream] = sizes.get(frame.stream, b"") + frame.payload
        return sorted(blocks) + [(stream, 0, data) for stream, data in sorted(sizes.items())]

    async def scenario() -> None:
        bytewise = await answers(None)
        length = len(conversation(Client(App(mixed))))
        for cut in range(1, length):
            found = await answers(cut)
            assert [part[:2] for part in found] == [part[:2] for part in bytewise], cut

    asyncio.run(scenario())


def mutated(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(found))
        match rng.randrange(4):
            case 0:
                found[place] ^= 1 << rng.randrange(8)
            case 1:
                del found[place : place + rng.randrange(1, 9)]
            case 2:
                found[place:place] = rng.randbytes(rng.randrange(1, 9))
            case _:
                other = rng.randrange(len(found))
                found[place:place] = found[other : other + rng.randrange(1, 60)]
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_with_mistakes(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        data = conversation(Client(App()))
        for _ in range(300):
            await converse([mutated(data, rng)])

    asyncio.run(scenario())


REQUESTS = (
    b"POST /a?b=%20 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    b"3\r\nabc\r\n0\r\nx: y\r\n\r\n"
    b"HEAD http://x/ HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.0\r\nHost: x\r\n\r\n"
)


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_http1_with_mistakes(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        for _ in range(300):
            app = App(mixed)
            client = test_http1.Client(app)
            data = mutated(REQUESTS, rng)
            while data and not client.transport.ended:
                cut = rng.choice([1, 10, 1000])
                client.connection.data_received(data[:cut])
                data = data[cut:]
                await turns(rng.randrange(3))
            await turns(10)
            client.transport.abort()
            await turns(10)
            assert (client.forgotten, app.ended) == (1, len(app.requests))

    asyncio.run(scenario())
