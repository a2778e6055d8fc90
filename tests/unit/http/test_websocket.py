"""WebSockets of clients that mean harm: what they send without end is bounded."""

import pytest

from raftkv.http import websocket
from raftkv.http.asgi import Receive, Scope, Send
from raftkv.http.http1 import Http1
from tests.unit.http.memory import App, Transport, turns
from tests.unit.http.test_connection import run

UPGRADE = (
    b"GET /v3/watch HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def frame(opcode: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """A masked frame, its mask being zeros."""
    return bytes([opcode | (0x80 if last else 0), 0x80 | len(data)]) + bytes(4) + data


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def opened(app: App) -> Transport:
    transport = Transport()
    transport.set_protocol = lambda protocol: setattr(transport, "protocol", protocol)  # type: ignore[method-assign]
    transport.protocol = Http1(app, lambda socket: None, lambda connection: None)
    transport.protocol.connection_made(transport)
    transport.protocol.data_received(UPGRADE)
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 101 ")
    return transport


def test_pings_of_a_client_that_does_not_read_are_not_read() -> None:
    async def scenario() -> None:
        transport = await opened(App(accept))
        transport.stuck = True
        for _ in range(1000):
            if not transport.reading:
                break
            transport.protocol.data_received(frame(9, b"x" * 100) * 100)
        assert not transport.reading
        assert len(transport.written) < 1 << 20
        transport.read()
        assert transport.reading

    run(scenario)


@pytest.mark.parametrize("data", [b"", b"x"])
def test_a_message_in_pieces_without_end_takes_no_memory(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_MESSAGE_BYTES", 64 << 10)

    async def scenario() -> None:
        app = App(accept)
        transport = await opened(app)
        socket = transport.protocol
        socket.data_received(frame(2, b"x", last=False))
        for _ in range(5000):
            if transport.closing:
                break
            socket.data_received(frame(0, data, last=False))
        assert len(socket._message) < 2000
        await turns()
        assert app.ended == (1 if data else 0)

    run(scenario)


def test_a_client_is_answered_by_the_rules() -> None:
    async def scenario() -> None:
        transport = await opened(App(accept))
        transport.written.clear()
        transport.protocol.data_received(frame(9, b"are you") + frame(8, b"\x03\xe8"))
        assert transport.written == b"\x8a\x07are you\x88\x02\x03\xe8"
        await turns()
        assert transport.closing

    run(scenario)
