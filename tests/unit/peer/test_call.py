"""The hand-written gRPC call against a server made of the h2 library, which keeps every rule of HTTP/2 and says so."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import uvloop

from raftkv.peer import connection
from raftkv.peer.call import Call

BOUND_SECONDS = 90.0


class Server:
    """One connection of an h2 server; gives window back only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int, frame: int) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        values = {codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.h2.max_inbound_frame_size = frame
        self.h2.initiate_connection()
        self.reader = reader
        self.writer = writer
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.frames: list[int] = []
        self.unacknowledged = 0
        self.pings_answered = 0
        self.news = asyncio.Event()

    async def run(self) -> None:
        self.flush()
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    self.take(event)
                self.flush()
                self.news.set()

    def take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self.headers = dict(event.headers)
            case h2.events.DataReceived():
                self.body += event.data
                self.frames.append(len(event.data))
                self.unacknowledged += event.flow_controlled_length
            case h2.events.PingAckReceived():
                self.pings_answered += 1

    def widen(self) -> None:
        size, self.unacknowledged = self.unacknowledged, 0
        if size:
            self.h2.acknowledge_received_data(size, 1)
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def until(self, condition: object) -> None:
        while not condition():  # type: ignore[operator]
            self.news.clear()
            await self.news.wait()


@contextlib.asynccontextmanager
async def connected(
    window: int = 1 << 16, frame: int = 16_384, on_round_trip: Callable[[float], None] = lambda seconds: None
) -> AsyncIterator[tuple[Call, Server, list[bool]]]:
    servers: asyncio.Queue[Server] = asyncio.Queue()
    writable: list[bool] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server(reader, writer, window, frame)
        servers.put_nowait(server)
        await server.run()
        writer.close()

    async with asyncio.timeout(BOUND_SECONDS), await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        call = Call("/s/M", "there", [("some-name", "value")], lambda: writable.append(True), on_round_trip)
        port = listener.sockets[0].getsockname()[1]
        await asyncio.get_running_loop().create_connection(lambda: call, "127.0.0.1", port)
        server = await servers.get()
        await call.ready
        try:
            yield call, server, writable
        finally:
            call.close()
            listener.close()


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def test_messages_arrive_whole_and_in_order_under_a_grpc_request() -> None:
    async def scenario() -> None:
        async with connected() as (call, server, _):
            call.write(b"one")
            call.write(b"")
            call.write(b"three" * 100)
            await server.until(lambda: server.body == framed(b"one") + framed(b"") + framed(b"three" * 100))
            wanted = {":method": "POST", ":path": "/s/M", ":authority": "there", ":scheme": "http", "te": "trailers"}
            assert wanted.items() <= server.headers.items()
            assert server.headers["content-type"] == "application/grpc"
            assert server.headers["some-name"] == "value"

    asyncio.run(scenario())


@pytest.mark.parametrize(("window", "frame"), [(100, 16_384), (1 << 16, 16_384), (1 << 24, 1 << 20)])
def test_windows_and_frame_sizes_are_kept(window: int, frame: int) -> None:
    """The h2 library ends the connection when either is exceeded."""

    async def scenario() -> None:
        message = bytes(range(256)) * (40 if window == 100 else 4096)
        async with connected(window, frame) as (call, server, writable):
            writable.clear()
            call.write(message)
            assert call.congested
            await server.until(lambda: len(server.body) >= min(window, 65_535))
            assert not writable, "nobody is told to go on before there is room"
            while len(server.body) < len(message) + 5:
                server.widen()
                before = len(server.body)
                await server.until(lambda seen=before: len(server.body) > seen)
            assert server.body == framed(message)
            assert max(server.frames) <= frame
            server.widen()
            while call.congested:
                await asyncio.sleep(0)
            assert writable

    asyncio.run(scenario())


def test_a_window_that_shrinks_below_nothing_is_waited_for() -> None:
    async def scenario() -> None:
        async with connected(1000) as (call, server, _):
            call.write(b"x" * 900)
            await server.until(lambda: len(server.body) == 905)
            server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
            server.flush()
            await server.until(lambda: server.h2.local_settings.initial_window_size == 10)
            call.write(b"y" * 100)
            server.h2.ping(b"in order")
            server.flush()
            await server.until(lambda: server.pings_answered == 1)
            assert len(server.body) == 905
            server.h2.increment_flow_control_window(2000, 1)
            server.flush()
            await server.until(lambda: server.body == framed(b"x" * 900) + framed(b"y" * 100))

    asyncio.run(scenario())


@pytest.mark.parametrize("trailers_only", [True, False])
def test_the_status_of_the_call_is_its_end(trailers_only: bool) -> None:
    async def scenario() -> None:
        async with connected() as (call, server, _):
            await server.until(lambda: server.headers)
            status = [("grpc-status", "9"), ("grpc-message", "not%20you")]
            start = [(":status", "200"), ("content-type", "application/grpc")]
            if trailers_only:
                server.h2.send_headers(1, start + status, end_stream=True)
            else:
                server.h2.send_headers(1, start)
                server.h2.send_headers(1, status, end_stream=True)
            server.flush()
            assert await call.ended == (9, "not you")
            call.write(b"nobody hears this")
            assert not call.congested

    asyncio.run(scenario())


def test_a_reset_a_lost_connection_and_a_foreign_answer_end_the_call_with_a_reason() -> None:
    async def scenario() -> None:
        async with connected() as (call, server, _):
            await server.until(lambda: server.headers)
            server.h2.reset_stream(1, 2)
            server.flush()
            assert await call.ended == (None, "the call was reset with HTTP/2 error 2")
        async with connected() as (call, server, _):
            server.writer.transport.abort()
            code, text = await call.ended
            assert (code, text.startswith("the connection was lost")) == (None, True)
        async with connected() as (call, server, _):
            await server.until(lambda: server.headers)
            server.h2.send_headers(1, [(":status", "404")], end_stream=True)
            server.flush()
            assert await call.ended == (None, "HTTP status 404")
        async with connected() as (call, server, _):
            server.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            code, text = await call.ended
            assert (code, text) == (None, "what listens there does not speak HTTP/2: a frame larger than was allowed")

    asyncio.run(scenario())


def test_silence_ends_the_call_and_an_answered_ping_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PING_SECONDS", 0.01)
    trips: list[float] = []

    async def scenario() -> None:
        async with connected(on_round_trip=trips.append) as (call, server, _):
            for _ in range(3):
                server.news.clear()
                await server.news.wait()
            while len(trips) < 2:
                await asyncio.sleep(0.001)
            assert all(0 < seconds < BOUND_SECONDS for seconds in trips)
            assert not call.ended.done()
            monkeypatch.setattr(connection, "PONG_SECONDS", 0.01)
            server.flush = lambda: None  # type: ignore[method-assign]
            code, text = await call.ended
            assert (code, text.startswith("no sign of life")) == (None, True)

    asyncio.run(scenario())


def test_a_call_whose_end_was_waited_for_too_long_is_closed_all_the_same() -> None:
    async def scenario() -> None:
        async with connected() as (call, server, _):
            await server.until(lambda: server.headers)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call.ended, 0.01)
            call.close()
            while not server.reader.at_eof():
                await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_call_that_was_closed_before_its_connection_was_made_says_nothing_on_it() -> None:
    async def scenario() -> None:
        async with connected() as (_, server, _), await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0):
            late = Call("/s/M", "there", [], lambda: None)
            late.close()
            host, port = server.writer.get_extra_info("sockname")
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: late, host, port)
            assert transport.is_closing()

    asyncio.run(scenario())


def test_a_call_whose_connection_was_given_up_in_the_making_can_be_closed() -> None:
    """What was raised here took the place of the cancellation, and a member that should stop dialled on for ever."""

    class Interrupted(Call):
        task: "asyncio.Task[object]"

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.task.cancel()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            call = Interrupted("/s/M", "there", [], lambda: None)
            call.task = asyncio.ensure_future(loop.create_connection(lambda: call, host, port))
            with pytest.raises(asyncio.CancelledError):
                await call.task
            # uvloop closes the transport a turn later.
            await asyncio.sleep(0)
            call.close()
            assert call.ended.done()

    uvloop.run(scenario())
