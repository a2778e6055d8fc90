"""What floods take of the turns of the event loop: together one part in two turns, however many they are."""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest

from raftkv.http import HttpServer, Load, connection, frames, listen
from raftkv.http.turns import PART
from tests.unit.http.memory import GET, App, Client, plain, rested, turns
from tests.unit.http.test_hostile import HELLO, WAIT_SECONDS, dialled, requests, say, serving

FRAMES, LATER_FRAMES = (int(work * connection.WORK_FRAMES) for work in (connection.TURN_WORK, PART))
PING = frames.frame(frames.PING, 0, 0, bytes(8))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def answered(client: Client) -> int:
    return sum(frame.kind == frames.PING for frame in client.received())


def test_floods_have_one_part_together_and_take_turns() -> None:
    async def scenario() -> None:
        load = Load()
        floods = [Client(App(), load=load) for _ in range(10)]
        for flood in floods:
            flood.send(PING * (FRAMES + 7 * LATER_FRAMES))
            assert answered(flood) == FRAMES
        await turns(2)
        assert [answered(flood) for flood in floods] == [FRAMES] * 10, "as much again"
        parts = []
        for _ in range(60):
            await turns(1)
            parts.append([number for number, flood in enumerate(floods) if answered(flood)])
        assert [part for part in parts if part] == [[number] for number in range(10)] * 3
        assert all(not (now and after) for now, after in itertools.pairwise(parts)), "every second turn is free"

    run(scenario)


def test_who_asks_for_little_waits_for_no_flood() -> None:
    async def scenario() -> None:
        load = Load()
        app = App()
        floods = [Client(App(), load=load) for _ in range(50)]
        other = Client(app, load=load)
        for flood in floods:
            flood.send(PING * (FRAMES + 8 * LATER_FRAMES))
        for number in range(20):
            other.send(PING, other.headers(2 * number + 1, GET))
            assert answered(other) == 1, "in the turn that brings it"
            await turns(2)
            assert len(app.requests) == number + 1
        assert load.turns._due

    run(scenario)


def test_a_turn_has_so_many_frames_and_requests_at_most() -> None:
    async def scenario() -> None:
        app = App()
        client = Client(app)
        client.send(PING * 100_000)
        assert answered(client) == FRAMES
        await turns(2)
        assert answered(client) == FRAMES, "once as much as what came at once"
        for _ in range(20):
            await turns(2)
            assert answered(client) == LATER_FRAMES
        client = Client(app)
        client.send(*[client.headers(stream, GET) for stream in range(1, 999, 2)])
        for count in range(1, 10):
            await turns(1)
            assert len(app.requests) <= 2 * connection.TURN_WORK + PART * max(count - 2, 0)
            await turns(1)

    run(scenario)


def test_a_large_frame_of_settings_is_much_work() -> None:
    async def scenario() -> None:
        client = Client(App())
        large = frames.settings([(frames.INITIAL_WINDOW_SIZE, 1)] * (frames.FRAME_BYTES // frames.SETTING.size))
        client.received()
        client.send(large * 16)
        acknowledged = sum(frame.kind == frames.SETTINGS for frame in client.received())
        assert acknowledged <= 1 + connection.TURN_WORK * 1024 // frames.FRAME_BYTES
        await rested(client)
        assert acknowledged + sum(frame.kind == frames.SETTINGS for frame in client.received()) == 16

    run(scenario)


def test_a_new_connection_begins_with_little() -> None:
    """Who comes back with a new connection for each flood has no more of it than one that stays."""

    async def scenario() -> None:
        app = App()
        async with serving(app) as server, dialled(server) as wild:
            await say(wild, HELLO + requests(1000, GET))
            async with asyncio.timeout(WAIT_SECONDS):
                while not app.requests:
                    await turns(1)
            assert len(app.requests) <= connection.FIRST_WORK
            async with asyncio.timeout(WAIT_SECONDS):
                while len(app.requests) < 1000:
                    await turns(1)

    run(scenario)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells")
@pytest.mark.parametrize("reset", [False, True])
def test_what_a_client_that_left_still_wanted_is_not_done(reset: bool) -> None:
    """Its end is behind what is not read yet; thousands of such connections were served in full, and kept meanwhile."""

    async def scenario() -> None:
        app = App(plain(b"x" * 1000))
        async with serving(app) as server:
            for _ in range(20):
                with socket.create_connection(server.address.split(":")) as wild:
                    wild.sendall(HELLO + requests(2000, GET))
                    if reset:
                        wild.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            async with asyncio.timeout(WAIT_SECONDS):
                await turns(200)
                while server._connections:
                    await asyncio.sleep(0)
            assert len(app.requests) <= 20 * connection.FIRST_WORK
            assert server.load.connections == 0

    run(scenario)


def test_one_connection_is_accepted_in_a_turn() -> None:
    async def scenario() -> None:
        async with serving(App()) as server, contextlib.AsyncExitStack() as stack:
            before = 0
            dials = [stack.enter_context(socket.create_connection(server.address.split(":"))) for _ in range(50)]
            async with asyncio.timeout(WAIT_SECONDS):
                while before < len(dials):
                    await turns(1)
                    assert server.load.connections <= before + 1
                    before = server.load.connections

    run(scenario)


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_server_that_stops_forgets_nobody_who_is_just_coming_in(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """uvloop tells a connection nothing of its end when it was given up in the moment in which it was made."""
    factory = asyncio.new_event_loop if name == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    async def scenario(later: int) -> None:
        server = HttpServer(App(), listen("127.0.0.1", 0), grace_seconds=0.3)
        await server.start()
        dials = [socket.create_connection(server.address.split(":")) for _ in range(5)]
        for dial in dials:
            dial.sendall(HELLO)
        await turns(later)
        stopping = asyncio.create_task(server.stop())
        await turns(20)
        for dial in dials:
            dial.close()
        await stopping
        assert not server._connections

    with caplog.at_level(logging.ERROR):
        for later in range(12):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(asyncio.wait_for(scenario(later), 60))
    assert not caplog.records
