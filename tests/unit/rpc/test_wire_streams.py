"""Streams that are cancelled, half closed or cut off: the handler hears of it, and the connection serves on."""

import asyncio
from collections.abc import Callable

import pytest

from raftkv.status import Code
from tests.unit.rpc.hosts import wired
from tests.unit.rpc.service import Service
from tests.unit.rpc.wire import WAIT_SECONDS, Wire, connect, message

ECHO = "/test.Service/Echo"
FOREVER = "/test.Service/Forever"
HOLD = "/test.Service/Hold"
PROMISE = "/test.Service/Promise"
TALK = "/test.Service/Talk"


async def talking(wire: Wire) -> int:
    """Open a stream that has been answered once."""
    stream = await wire.open(TALK)
    await wire.data(stream, message(b"1"))
    await wire.until(lambda: bool(wire.answers[stream].messages))
    return stream


async def waiting(wire: Wire, service: Service, path: str, *, at_once: bool = False) -> int:
    """Open a call whose whole request was sent, in one piece or not, and whose handler waits."""
    service.entered.clear()
    if at_once:
        stream = await wire.open(path, body=message(b"wait"), end=True)
    else:
        stream = await wire.open(path)
        await wire.data(stream, message(b"wait"), end=True)
    await asyncio.wait_for(service.entered.wait(), WAIT_SECONDS)
    return stream


async def cancelled(service: Service) -> None:
    await asyncio.wait_for(service.cancelled.wait(), WAIT_SECONDS)
    service.cancelled.clear()


async def is_alive(wire: Wire) -> None:
    assert (await wire.call(ECHO, message(b"alive"))).messages == [b"alive"]
    assert not wire.goaways


def test_a_reset_ends_the_handler_and_nothing_else(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            other = await talking(wire)
            for _ in range(3):
                await wire.reset(await talking(wire))
                await cancelled(service)
                for at_once in (False, True):
                    await wire.reset(await waiting(wire, service, FOREVER, at_once=at_once))
                    await cancelled(service)
            await wire.data(other, message(b"2"), end=True)
            assert (await wire.end_of(other)).messages == [b"1!", b"2!", b"bye"]
            await is_alive(wire)

    asyncio.run(scenario())


def test_a_reset_ends_a_unary_handler(host: str) -> None:
    if host == "hypercorn":
        pytest.skip("hypercorn 0.18 does not cancel the request's task, and a unary call has no task that listens")

    async def scenario() -> None:
        async with wired(host) as (service, wire):
            for path in (ECHO, PROMISE):
                await wire.reset(await waiting(wire, service, path))
                await cancelled(service)
            await is_alive(wire)

    asyncio.run(scenario())


def test_a_reset_amid_the_request_starts_no_unary_handler(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            for part in (b"", message(b"half")[:3], message(b"half")[:-1], message(b"whole")):
                stream = await wire.open(ECHO)
                if part:
                    await wire.data(stream, part)
                await wire.reset(stream)
            await is_alive(wire)
            # A whole message whose end was not announced may already have been taken for the request.
            assert service.calls <= 2

    asyncio.run(scenario())


def test_a_client_that_has_said_all_is_still_answered(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            hold = await wire.open(HOLD)
            await wire.data(hold, message(b"12345"), end=True)
            unary = await waiting(wire, service, ECHO)
            forever = await waiting(wire, service, FOREVER)
            await wire.ping()
            service.release.set()
            assert (await wire.end_of(hold)).messages == [b"5"]
            assert (await wire.end_of(unary)).messages == [b"wait"]
            assert (await wire.end_of(forever)).status[0] == 0

    asyncio.run(scenario())


def test_a_server_that_has_said_all_does_not_wait_for_the_client(host: str) -> None:
    if host == "hypercorn":
        pytest.skip("hypercorn 0.18 breaks the connection when request data comes after the answer")

    async def scenario() -> None:
        async with wired(host) as (_, wire):
            for path in (TALK, "/test.Service/Nope"):
                stream = await wire.open(path)
                await wire.data(stream, message(b"x", 9))
                answer = await wire.end_of(stream)
                assert answer.status[0] in (Code.INTERNAL, Code.UNIMPLEMENTED)
                # Nobody reads this any more; it must not hurt either.
                if answer.reset is None:
                    await wire.data(stream, message(b"more"), end=True)
            await is_alive(wire)

    asyncio.run(scenario())


def cut(wire: Wire) -> None:
    wire.writer.transport.abort()


def half_close(wire: Wire) -> None:
    wire.writer.write_eof()


@pytest.mark.parametrize("leave", [cut, half_close])
def test_a_client_that_vanishes_ends_its_handlers_and_no_others(host: str, leave: Callable[[Wire], None]) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            kept = await talking(wire)
            for path in (TALK, FOREVER):
                async with connect(service.address) as leaving:
                    if path == TALK:
                        await talking(leaving)
                    else:
                        await waiting(leaving, service, path)
                    leave(leaving)
                    await cancelled(service)
            await wire.data(kept, message(b"2"), end=True)
            assert (await wire.end_of(kept)).messages == [b"1!", b"2!", b"bye"]

    asyncio.run(scenario())


def test_a_vanished_client_ends_its_unary_handler() -> None:
    """Not on hypercorn: see `test_a_reset_ends_a_unary_handler`."""

    async def scenario() -> None:
        for path in (ECHO, PROMISE):
            async with wired("raftkv") as (service, wire):
                await waiting(wire, service, path)
                cut(wire)
                await cancelled(service)

    asyncio.run(scenario())


def test_a_client_that_vanishes_amid_a_large_request(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            for path in (ECHO, "/test.Service/Total", TALK):
                async with connect(service.address) as leaving:
                    stream = await leaving.open(path)
                    await leaving.data(stream, message(b"x" * 500_000)[:300_000])
                    cut(leaving)
            await is_alive(wire)
            assert service.calls <= 2, "no unary handler was started"

    asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_requests_that_end_amid_a_message_are_answered_up_to_it(host: str, at_once: bool) -> None:
    async def scenario() -> None:
        async with wired(host) as (_, wire):
            body = message(b"1") + message(b"2")[:-1]
            if at_once:
                stream = await wire.open(TALK, body=body, end=True)
            else:
                stream = await wire.open(TALK)
                await wire.data(stream, body, end=True)
            answer = await wire.end_of(stream)
            assert answer.messages == [b"1!"]
            assert answer.status[0] == Code.INTERNAL
            await is_alive(wire)

    asyncio.run(scenario())
