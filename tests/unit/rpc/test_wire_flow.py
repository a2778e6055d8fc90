"""Flow control and pings: a slow or a huge answer delays nothing else on its connection."""

import asyncio

import pytest
from h2.settings import SettingCodes

from raftkv.http import STREAM_WINDOW_BYTES
from tests.unit.rpc.hosts import wired
from tests.unit.rpc.test_wire_streams import is_alive, talking
from tests.unit.rpc.wire import Wire, message

BLOB = "/test.Service/Blob"
HOLD = "/test.Service/Hold"
HUGE = 100 << 20
LARGE_WINDOW = (1 << 31) - 1


async def ask_for(wire: Wire, size: int) -> int:
    stream = await wire.open(BLOB)
    await wire.data(stream, message(b"%d" % size), end=True)
    return stream


def window(size: int) -> dict[SettingCodes, int]:
    return {SettingCodes.INITIAL_WINDOW_SIZE: size}


async def set_window(wire: Wire, size: int) -> None:
    wire.h2.update_settings(window(size))
    await wire.flush()


async def grant(wire: Wire, size: int, stream: int | None = None) -> None:
    wire.h2.increment_flow_control_window(size, stream)
    await wire.flush()


async def received(wire: Wire, stream: int, size: int) -> None:
    """Wait for exactly this much; h2 itself raises when the server sends more than a window allows."""
    await wire.until(lambda: len(wire.answers[stream].body) >= size)
    await wire.ping()
    assert len(wire.answers[stream].body) == size


def test_the_window_of_an_open_stream_follows_the_settings(host: str) -> None:
    async def scenario() -> None:
        async with wired(host, window(10)) as (_, wire):
            wire.acknowledge = False
            stream = await ask_for(wire, 5000)
            await received(wire, stream, 10)
            await set_window(wire, 500)
            await received(wire, stream, 500)
            # Below what was sent already: the stream's window is negative now, and must first be paid back.
            await set_window(wire, 100)
            await grant(wire, 400, stream)
            await received(wire, stream, 500)
            await grant(wire, 50, stream)
            await received(wire, stream, 550)
            await set_window(wire, 60_000)
            assert len((await wire.end_of(stream)).messages[0]) == 5000

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [0, 1, 7])
def test_tiny_windows(host: str, size: int) -> None:
    async def scenario() -> None:
        async with wired(host, window(size)) as (_, wire):
            wire.acknowledge = False
            stream = await ask_for(wire, 300)
            await wire.until(lambda: bool(wire.answers[stream].headers))
            await received(wire, stream, size)
            for _ in range(20):
                await grant(wire, 3, stream)
            await received(wire, stream, size + 60)
            await grant(wire, 1000, stream)
            assert len((await wire.end_of(stream)).messages[0]) == 300

    asyncio.run(scenario())


def test_the_window_of_the_connection_holds_every_stream_and_no_ping(host: str) -> None:
    async def scenario() -> None:
        async with wired(host, window(LARGE_WINDOW)) as (_, wire):
            wire.acknowledge = False
            streams = [await ask_for(wire, 50_000) for _ in range(3)]
            await wire.until(lambda: sum(len(wire.answers[stream].body) for stream in streams) == 65_535)
            await wire.ping()
            await grant(wire, 1 << 20)
            for stream in streams:
                assert len((await wire.end_of(stream)).messages[0]) == 50_000

    asyncio.run(scenario())


def test_a_reset_gives_the_connection_its_window_back(host: str) -> None:
    """What a cancelled call was about to send, or had received unread, must not count against the others for ever."""

    async def scenario() -> None:
        async with wired(host) as (_, wire):
            # More than the whole window of a connection, all told.
            for _ in range(150 if host != "hypercorn" else 10):
                stream = await wire.open("/test.Service/Total")
                await wire.data(stream, message(b"x" * 900_000)[:500_000])
                await wire.reset(stream)
            await is_alive(wire)
            stream = await wire.open("/test.Service/Total")
            await wire.data(stream, message(b"y" * 900_000), end=True)
            assert (await wire.end_of(stream)).messages == [b"900000"]

    asyncio.run(scenario())


def test_a_handler_that_does_not_read_holds_its_client_and_no_other_call() -> None:
    """On the host that ships: hypercorn takes whatever comes into memory."""

    async def scenario() -> None:
        async with wired("raftkv") as (service, wire):
            held = await wire.open(HOLD)
            await asyncio.wait_for(service.entered.wait(), 90)
            piece, sent = message(b"x" * 16_000), 0
            while sent < 8 * STREAM_WINDOW_BYTES:
                if wire.room(held) < len(piece):
                    await wire.ping()
                if wire.room(held) < len(piece):
                    break
                await wire.data(held, piece)
                sent += 16_000
            assert sent <= 3 * STREAM_WINDOW_BYTES, "what nobody reads must not pile up"
            stream = await wire.open("/test.Service/Total")
            await wire.data(stream, message(b"y" * 900_000), end=True)
            assert (await wire.end_of(stream)).messages == [b"900000"]
            service.release.set()
            await wire.data(held, b"", end=True)
            assert (await wire.end_of(held)).messages == [b"%d" % sent]

    asyncio.run(scenario())


@pytest.mark.parametrize("idle", [True, False])
def test_a_storm_of_pings_is_answered_and_never_punished(host: str, idle: bool) -> None:
    async def scenario() -> None:
        async with wired(host) as (_, wire):
            stream = None if idle else await talking(wire)
            for _ in range(50):
                wanted = wire.pings + 100
                for number in range(100):
                    wire.h2.ping(number.to_bytes(8, "big"))
                await wire.flush()
                await wire.until(lambda wanted=wanted: wire.pings >= wanted)  # type: ignore[misc]
            assert (wire.pings, wire.goaways) == (5000, [])
            if stream is not None:
                await wire.data(stream, message(b"2"), end=True)
                assert (await wire.end_of(stream)).messages == [b"1!", b"2!", b"bye"]
            await is_alive(wire)

    asyncio.run(scenario())


def test_a_ping_after_each_message_is_no_abuse(host: str) -> None:
    """As the bandwidth estimate of grpc-go sends them."""

    async def scenario() -> None:
        async with wired(host) as (_, wire):
            await converse(wire, await talking(wire), 300)
            await is_alive(wire)

    asyncio.run(scenario())


def test_an_answer_that_nobody_takes_delays_no_stream(host: str) -> None:
    # h2corn 2.0 holds 2 MiB of unsent answers for a connection; when one stream fills that, the others wait with it.
    size = 5 << 19 if host == "h2corn" else HUGE

    async def scenario() -> None:
        async with wired(host, window(1 << 20), max_send_bytes=HUGE) as (_, wire):
            await grant(wire, LARGE_WINDOW - 65_535)
            live = await talking(wire)
            wire.acknowledge = False
            stuck = await ask_for(wire, size)
            await wire.until(lambda: len(wire.answers[stuck].body) == 1 << 20)
            await converse(wire, live, 50)
            assert len(wire.answers[stuck].body) == 1 << 20
            await wire.reset(stuck)
            await is_alive(wire)

    asyncio.run(scenario())


async def converse(wire: Wire, stream: int, count: int) -> None:
    """Send messages on an open stream, each after the answer to the one before, with a ping between."""
    for _ in range(count):
        before = len(wire.answers[stream].messages)
        await wire.data(stream, message(b"m"))
        await wire.until(lambda before=before: len(wire.answers[stream].messages) > before)  # type: ignore[misc]
        await wire.ping()


@pytest.mark.parametrize("size", [65_535, LARGE_WINDOW], ids=["small windows", "large windows"])
def test_a_huge_answer_under_way_lets_a_stream_pass(size: int) -> None:
    """Not on hypercorn: its frames and windows, in Python, take half a minute for such an answer."""

    async def scenario() -> None:
        async with wired("raftkv", window(size), max_send_bytes=HUGE) as (_, wire):
            live = await talking(wire)
            await grant(wire, LARGE_WINDOW - 65_535)
            huge = await ask_for(wire, HUGE)
            body = wire.answers[huge].body
            conversations = 0
            while not wire.answers[huge].ended:
                await wire.read()
                if len(body) // (10 << 20) > conversations and len(body) < 90 << 20:
                    begin = len(body)
                    await converse(wire, live, 1)
                    assert len(body) - begin < 16 << 20, "the stream waited behind the huge answer"
                    conversations += 1
            assert len(body) == HUGE + 5
            assert conversations >= 4

    asyncio.run(scenario())
