"""Connections: dials that go nowhere, many at once, storms of cancelled calls, and the end of the server."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from raftkv.http import MAX_STREAMS, HttpServer, listen
from raftkv.status import Code
from tests.unit.rpc.hosts import wired
from tests.unit.rpc.service import Service
from tests.unit.rpc.test_wire_streams import TALK, cancelled, is_alive, talking, waiting
from tests.unit.rpc.wire import WAIT_SECONDS, Wire, connect, message

SETTINGS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def test_the_server_speaks_first_and_allows_any_number_of_streams() -> None:
    """On the host that ships: how many streams another host allows is its own setting."""

    async def scenario() -> None:
        async with wired("raftkv") as (_, wire):
            await wire.ping()
            assert wire.frame_types[0] == SETTINGS
            assert wire.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] == MAX_STREAMS

    asyncio.run(scenario())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_dials_that_go_nowhere_cost_nothing_that_stays(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            await is_alive(wire)
            before = descriptors()
            address, port = service.address.rsplit(":", 1)
            dials = [socket.create_connection((address, int(port))) for _ in range(60)]
            for number, dial in enumerate(dials):
                dial.sendall(PREFACE[: number % len(PREFACE)])
            await is_alive(wire)
            async with connect(service.address) as other:
                await is_alive(other)
            for number, dial in enumerate(dials):
                if number % 2:
                    # Close with a reset, as a client does that gives up while the server writes.
                    dial.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                dial.close()
            async with asyncio.timeout(WAIT_SECONDS):
                while descriptors() > before:
                    await is_alive(wire)

    asyncio.run(scenario())


def test_a_hundred_connections_with_a_stream_each(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, _), contextlib.AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(connect(service.address)) for _ in range(100)]
            streams = await asyncio.gather(*[talking(wire) for wire in wires])
            for wire, stream in zip(wires, streams, strict=True):
                await wire.data(stream, message(b"2"), end=True)
                assert (await wire.end_of(stream)).messages == [b"1!", b"2!", b"bye"]

    asyncio.run(scenario())


async def storm(wire: Wire, resets: int) -> None:
    for _ in range(resets):
        stream = await wire.open(TALK)
        await wire.data(stream, message(b"1"))
        await wire.reset(stream)


def test_many_cancelled_calls_disturb_no_other_on_their_connection(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (_, wire):
            live = await talking(wire)
            await storm(wire, 190)
            await wire.ping()
            await wire.data(live, message(b"2"), end=True)
            assert (await wire.end_of(live)).messages == [b"1!", b"2!", b"bye"]
            await is_alive(wire)

    asyncio.run(scenario())


def test_thousands_of_resets_at_once_cost_their_own_connection_at_most(host: str) -> None:
    """h2corn 2.0 ends a connection after 200 resets in a few seconds, as a guard; the host that ships bears them."""

    async def scenario() -> None:
        async with wired(host) as (service, wire):
            live = await talking(wire)
            async with connect(service.address) as wild:
                with contextlib.suppress(ConnectionError):
                    await storm(wild, 3000)
                    await wild.ping()
                assert all(goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM for goaway in wild.goaways)
            async with connect(service.address) as fresh:
                await is_alive(fresh)
            await wire.data(live, message(b"2"), end=True)
            assert (await wire.end_of(live)).messages == [b"1!", b"2!", b"bye"]

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Service, HttpServer]]:
    service = Service()
    server = HttpServer(service.app(), listen("127.0.0.1", 0), grace_seconds=20)
    await server.start()
    try:
        yield service, server
    finally:
        await server.stop()


def test_a_server_that_stops_says_goaway_ends_streams_and_finishes_unary_calls() -> None:
    async def scenario() -> None:
        async with serving() as (service, server), connect(server.address) as wire:
            stream = await talking(wire)
            unary = await waiting(wire, service, "/test.Service/Echo")
            stopping = asyncio.create_task(server.stop())
            assert (await wire.end_of(stream)).status == (Code.UNAVAILABLE, "the server is stopping")
            await cancelled(service)
            assert wire.answers[stream].reset in (None, ErrorCodes.NO_ERROR), "a watch does not survive a CANCEL"
            await wire.until(lambda: bool(wire.goaways))
            service.release.set()
            assert (await wire.end_of(unary)).messages == [b"wait"]
            await stopping
            assert {goaway.error_code for goaway in wire.goaways} == {ErrorCodes.NO_ERROR}
            assert wire.goaways[-1].last_stream_id == unary, "what came later is safe to repeat elsewhere"

    asyncio.run(scenario())


def test_a_stopped_server_takes_no_dials_and_its_idle_connections_end() -> None:
    async def scenario() -> None:
        async with serving() as (_, server), connect(server.address) as wire:
            await is_alive(wire)
            address = server.address
            await server.stop()
            with pytest.raises(ConnectionError):
                await wire.until(lambda: False)
            assert [goaway.error_code for goaway in wire.goaways][-1] == ErrorCodes.NO_ERROR
            with pytest.raises(ConnectionError):
                async with connect(address) as late:
                    await late.ping()

    asyncio.run(scenario())
