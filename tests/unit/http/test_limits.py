"""Deadlines and bounds of connections: what does not end, does not get taken, or comes too often, over real sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from raftkv.config import Config
from raftkv.http import HttpServer, Load, connection, frames, listen, patience
from raftkv.http.asgi import Receive, Scope, Send
from raftkv.http.turns import PART
from tests.support import virtual
from tests.unit.http.memory import GET, App, Client, plain, rested, turns, wait
from tests.unit.http.test_hostile import HELLO, WAIT_SECONDS, ask, dialled, ended, requests, say, serving

CALM = frames.ErrorCode.ENHANCE_YOUR_CALM


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


HALF_FRAME = frames.HEAD.pack(0, 100, frames.PING, 0, 0) + b"half"
HALF_HEADERS = frames.frame(frames.HEADERS, 0, 1, b"\x82")


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (HALF_FRAME, b"x"),
        (HALF_HEADERS, frames.frame(frames.CONTINUATION, 0, 1, b"\x86")),
        (frames.PREFACE[:20], b""),
    ],
    ids=["frame", "headers", "preface"],
)
def test_what_was_begun_and_does_not_end_is_hung_up(begun: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly more of it comes; and who is idle between frames is not."""
    monkeypatch.setattr(patience, "FRAME_SECONDS", 0.3)

    async def scenario() -> None:
        async with serving(App()) as server, dialled(server) as slow, dialled(server) as idle:
            await say(idle, HELLO)
            await say(slow, begun if begun == frames.PREFACE[:20] else HELLO + begun)
            reading = asyncio.create_task(ended(slow))
            async with asyncio.timeout(WAIT_SECONDS):
                while not reading.done():
                    if more:
                        await say(slow, more)
                    await asyncio.sleep(0.02)
            assert b"does not end" in reading.result()
            assert (await ask(server)).endswith(b"ok\r\n0\r\n\r\n")
            idling = asyncio.create_task(ended(idle))
            await say(idle, requests(1, GET))
            await asyncio.sleep(0)
            assert not idling.done()
            idle.shutdown(socket.SHUT_WR)
            assert b"does not end" not in await idling

    run(scenario)


def test_many_frames_cut_anywhere_are_no_slow_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read of a busy connection may end inside a frame."""

    async def scenario() -> None:
        client = Client(App())
        watch = client.connection._frames
        data = frames.frame(frames.PING, 0, 0, bytes(8)) * 3
        client.send(data[:25])
        for _ in range(5):
            assert watch._timer is not None
            watch._timer.cancel()
            client.send(data[25:], data[:25])
            watch._look()
            assert not client.transport.ended
        watch._timer.cancel()
        watch._look()
        assert client.goaway() == (0, CALM)

    run(scenario)


def test_an_answer_that_nobody_takes_is_given_up_and_one_taken_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        load = Load()
        client = Client(App(plain(b"x" * 1000)), settings=[(frames.INITIAL_WINDOW_SIZE, 0)], load=load)
        client.send(client.headers(1, GET), client.headers(3, GET))
        await turns()
        assert load.bytes == 2000
        client.send(frames.number(frames.WINDOW_UPDATE, 3, 10))
        client.connection._look_at_untaken()
        await turns()
        assert client.resets() == [(1, frames.ErrorCode.CANCEL)]
        assert load.bytes == 990
        for _ in range(5):
            client.send(frames.number(frames.WINDOW_UPDATE, 3, 10))
            client.connection._look_at_untaken()
        await turns()
        assert client.resets() == []
        client.send(frames.number(frames.WINDOW_UPDATE, 3, 1000))
        assert load.bytes == 0
        assert not client.connection._streams
        client.connection._look_at_untaken()
        assert client.connection._look_timer is None

    run(scenario)


def test_zero_windows_are_given_up_over_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ANSWER_SECONDS", 0.2)

    async def scenario() -> None:
        load = Load()
        server = HttpServer(App(plain(b"x" * 1000)), listen("127.0.0.1", 0), grace_seconds=1.0, load=load)
        await server.start()
        async with dialled(server) as wild:
            closed = frames.PREFACE + frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)])
            await say(wild, closed + requests(1000, GET))
            async with asyncio.timeout(WAIT_SECONDS):
                while load.bytes < 1000:
                    await asyncio.sleep(0)
                while load.bytes:
                    await asyncio.sleep(0.01)
            assert (await ask(server)).startswith(b"HTTP/1.1 200")
        await server.stop()
        assert load.connections == 0

    run(scenario)


def test_what_waits_counts_no_more_when_its_client_is_gone() -> None:
    async def scenario() -> None:
        load = Load()
        client = Client(App(plain(b"x" * 1000)), settings=[(frames.INITIAL_WINDOW_SIZE, 0)], load=load)
        client.send(client.headers(1, GET), client.headers(3, GET))
        await turns()
        client.send(frames.number(frames.RST_STREAM, 1, 8))
        assert load.bytes == 1000
        client.connection.connection_lost(None)
        assert load.bytes == 0

    run(scenario)


def test_connections_beyond_the_most_are_refused_and_others_served(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        load = Load(max_connections=3)
        servers = [HttpServer(App(), listen("127.0.0.1", 0), grace_seconds=1.0, load=load) for _ in range(2)]
        for server in servers:
            await server.start()
        async with dialled(servers[0]) as first, dialled(servers[1]) as second:
            for dial in (first, second):
                await say(dial, HELLO)
            async with asyncio.timeout(WAIT_SECONDS):
                while load.connections < 2:
                    await asyncio.sleep(0)
            async with dialled(servers[0]) as third:
                await say(third, HELLO)
                async with asyncio.timeout(WAIT_SECONDS):
                    while load.connections < 3:
                        await asyncio.sleep(0)
                    for server in servers * 5:
                        async with dialled(server) as late:
                            assert await ended(late) == b""
                assert load.refused_connections == 10
            async with asyncio.timeout(WAIT_SECONDS):
                while load.connections > 2:
                    await asyncio.sleep(0)
            assert (await ask(servers[0])).endswith(b"ok\r\n0\r\n\r\n"), "there is room again"
        for server in servers:
            await server.stop()
        assert load.connections == 0

    run(scenario)
    assert len(caplog.records) == 5, "of ten refusals the first, second, third, fifth and ninth are told"


@pytest.mark.parametrize(
    "small", [frames.settings([]), frames.frame(frames.PRIORITY, 0, 1, bytes(5)), frames.frame(99, 0, 0)]
)
def test_small_frames_leave_turns_to_others(small: bytes) -> None:
    """A read brings tens of thousands of them; all in one turn, they were a tenth of a second."""

    async def scenario() -> None:
        client = Client(App())
        await turns()
        client.received()
        client.send(small * int((connection.TURN_WORK + 6 * PART) * connection.WORK_FRAMES), ping())
        for _ in range(3):
            assert not client.transport.reading
            assert not [frame for frame in client.received() if frame.kind == frames.PING]
            await turns(2)
        await rested(client)
        assert client.transport.reading
        assert client.received()[-1].kind == frames.PING

    run(scenario)


@pytest.mark.parametrize("pieces", [connection.MAX_BLOCK_FRAMES, connection.MAX_BLOCK_FRAMES + 1])
def test_a_block_of_headers_comes_in_so_many_frames_at_most(pieces: int) -> None:
    async def scenario() -> None:
        client = Client(App())
        block = client.encoder.encode([*GET, ("x", "y" * 1000)])
        first, rest = block[: 1 - pieces], block[1 - pieces :]
        client.send(frames.frame(frames.HEADERS, frames.END_STREAM, 1, first))
        for number in range(pieces - 1):
            last = frames.END_HEADERS if number == pieces - 2 else 0
            client.send(frames.frame(frames.CONTINUATION, last, 1, rest[number : number + 1]))
        await turns()
        if pieces > connection.MAX_BLOCK_FRAMES:
            assert client.goaway() == (0, CALM)
        else:
            assert client.status(1) == "200"

    run(scenario)


# Pings


def ping() -> bytes:
    return frames.frame(frames.PING, 0, 0, bytes(8))


def test_pings_that_come_too_soon_are_hung_up_where_that_is_asked_for() -> None:
    async def scenario() -> None:
        client = Client(App(), ping_seconds=5.0)
        client.send(ping() * 3)
        assert client.goaway() is None
        client.send(ping())
        assert client.goaway() == (0, CALM)
        patient = Client(App())
        patient.send(ping() * 1000)
        assert patient.goaway() is None

    run(scenario)


def test_pings_between_requests_are_no_flood() -> None:
    """Clients measure bandwidth by a ping for each piece of an answer."""

    async def scenario() -> None:
        client = Client(App(), ping_seconds=5.0)
        for stream in range(1, 101, 2):
            client.send(client.headers(stream, GET), ping())
            await turns()
            client.send(ping())
        assert client.goaway() is None

    run(scenario)


def window(stream: int, size: int) -> bytes:
    return frames.number(frames.WINDOW_UPDATE, stream, size)


def test_pings_after_data_are_no_flood_though_the_window_is_as_it_was() -> None:
    """A watch that sends an event now and then; clients answer each with a window and a ping."""

    async def scenario() -> None:
        events: asyncio.Queue[bytes] = asyncio.Queue()

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": await events.get(), "more_body": True})

        client = Client(App(watch), ping_seconds=5.0)
        client.send(client.headers(1, GET), ping())
        for _ in range(50):
            events.put_nowait(bytes(100))
            await turns()
            client.send(window(0, 100), window(1, 100), ping())
        assert client.goaway() is None
        client.send(*[window(0, 1) + window(1, 1) + ping()] * 3)
        assert client.goaway() == (1, CALM), "windows that grow are no use to anybody by themselves"

    run(scenario)


WATCHES = {
    "as often as may be": (5.0, True),
    "etcdctl, gRPC for Go at its most impatient, this project's clients": (10.0, True),
    "Kubernetes": (30.0, True),
    "without a stream, as often as may be": (5.0, False),
    "gRPC for Go that may ping without a stream": (10.0, False),
    "jetcd": (30.0, False),
}


@pytest.mark.parametrize("name", WATCHES)
def test_clients_that_ping_as_they_should_are_answered_for_a_day(name: str) -> None:
    seconds, streaming = WATCHES[name]

    async def scenario() -> None:
        client = Client(App(wait), ping_seconds=Config().grpc_keepalive_min_time_seconds)
        if streaming:
            client.send(client.headers(1, GET, end=False))
        for _ in range(int(86_400 / seconds)):
            client.send(ping())
            assert [frame.kind for frame in client.received() if frame.kind != frames.SETTINGS][-1:] == [frames.PING]
            await asyncio.sleep(seconds)
        if streaming:
            client.connection.abort()

    virtual.run(scenario())


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_pings_each_second_is_told_to_be_calm(streaming: bool) -> None:
    async def scenario() -> None:
        client = Client(App(wait), ping_seconds=Config().grpc_keepalive_min_time_seconds)
        if streaming:
            client.send(client.headers(1, GET, end=False))
        told = []
        for _ in range(4):
            client.send(ping())
            told.append(client.goaway())
            await asyncio.sleep(1.0)
        assert told == [None, None, None, (int(streaming), CALM)]

    virtual.run(scenario())


def test_pings_far_enough_apart_are_answered_for_ever() -> None:
    async def scenario() -> None:
        watch = patience.PingWatch(5.0)
        assert not any(watch.too_many(5.0 * number, (0, 0)) for number in range(100))
        # A clock that is fast, and what the way does to the gaps.
        assert not any(watch.too_many(2000 + 4.6 * number, (0, 0)) for number in range(100))
        early = [watch.too_many(4000 + 4.4 * number, (0, 0)) for number in range(5)]
        assert early == [False, False, False, True, True]

    run(scenario)


def test_a_ping_flood_over_a_socket_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        server = HttpServer(App(), listen("127.0.0.1", 0), grace_seconds=1.0, ping_seconds=5.0)
        await server.start()
        async with dialled(server) as wild:
            reading = asyncio.create_task(ended(wild))
            await say(wild, HELLO + ping() * 100_000)
            async with asyncio.timeout(WAIT_SECONDS):
                assert b"too_many_pings" in await reading
            assert (await ask(server)).endswith(b"ok\r\n0\r\n\r\n")
        await server.stop()

    run(scenario)
