"""Answers past the handler's iterator: never between the pieces of one that the iterator gave."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from raftkv.http import frames
from raftkv.rpc import App, Context, Framed, Method
from raftkv.rpc.framing import Deframer, frame
from tests.unit.http.memory import POST, Client, turns

LARGE = b"large" * (600 << 10)
SMALL = b"small"
HEADERS = [
    *POST[:2],
    (":path", "/test.Service/Told"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


async def told(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Framed]:
    """Yields one large message, and pushes small ones whenever there is room."""
    loop, push = asyncio.get_running_loop(), context.push
    assert push is not None

    def soon() -> None:
        if push.room() > 2 * len(SMALL):
            push(Framed(frame(SMALL, 100), 1))
        loop.call_soon(soon)

    soon()
    yield Framed(frame(LARGE, len(LARGE)), 1)
    yield Framed(frame(b"end", 100), 1)


@pytest.mark.parametrize("window", [frames.MAX_WINDOW, 300_000])
def test_nothing_comes_between_the_pieces_of_a_large_message(window: int) -> None:
    async def scenario() -> None:
        client = Client(
            App({"/test.Service/Told": Method.bidi(told)}),
            settings=[(frames.INITIAL_WINDOW_SIZE, window)],
        )
        client.send(frames.number(frames.WINDOW_UPDATE, 0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW))
        client.send(client.headers(1, HEADERS, end=False))
        deframer, messages = Deframer(b"", len(LARGE)), list[bytes]()
        while b"end" not in messages:
            await turns(1)
            data = b"".join(one.payload for one in client.received() if one.kind == frames.DATA)
            messages += deframer.feed(data)
            if data and window < frames.MAX_WINDOW:
                client.send(frames.number(frames.WINDOW_UPDATE, 1, len(data)))
        assert messages.count(LARGE) == messages.count(b"end") == 1
        assert SMALL in messages
        assert set(messages) == {LARGE, SMALL, b"end"}
        client.connection.abort()
        await turns()

    asyncio.run(asyncio.wait_for(scenario(), 60))
