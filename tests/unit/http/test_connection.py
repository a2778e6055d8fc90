"""The rules of HTTP/2 that clients break: what each costs, and that nothing stays behind."""

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from raftkv.http import connection as module
from raftkv.http import frames
from raftkv.http.asgi import DIRECT, Receive, Scope, Send
from raftkv.http.frames import ErrorCode
from tests.unit.http.memory import GET, POST, App, Client, plain, read_all, rested, turns, wait

H, D = frames.HEADERS, frames.DATA
END, WHOLE = frames.END_STREAM, frames.END_HEADERS


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 90))


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream, payload)


PROTOCOL, SIZE, FLOW = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR
CALM, COMPRESSION = ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.COMPRESSION_ERROR
MAX = frames.MAX_WINDOW

FATAL = {
    "headers on stream 0": (raw(H, WHOLE, 0, b"\x82"), PROTOCOL),
    "headers on an even stream": (raw(H, WHOLE, 2, b"\x82"), PROTOCOL),
    "headers too short for a priority": (raw(H, WHOLE | 0x20, 3, b"\0\0\0"), SIZE),
    "headers of nothing but padding": (raw(H, WHOLE | 0x8, 3, b"\x05abc"), PROTOCOL),
    "padded headers without a length": (raw(H, WHOLE | 0x8, 3), SIZE),
    "headers of no table entry": (raw(H, WHOLE, 3, b"\xff\xff\x7f"), COMPRESSION),
    "headers cut off": (raw(H, WHOLE, 3, b"\x40\x0aab"), COMPRESSION),
    "an integer without end": (raw(H, WHOLE, 3, b"\xff" + b"\xff" * 40), COMPRESSION),
    "a table larger than allowed": (raw(H, WHOLE, 3, b"\x3f\xff\xff\x03\x82"), COMPRESSION),
    "a header list too large": (raw(H, WHOLE, 3, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 80), COMPRESSION),
    "data on stream 0": (raw(D, 0, 0, b"x"), PROTOCOL),
    "data on an even stream": (raw(D, 0, 2, b"x"), PROTOCOL),
    "data of a stream to come": (raw(D, 0, 9, b"x"), PROTOCOL),
    "more padding than data": (raw(D, 0x8, 1, b"\x09abc"), PROTOCOL),
    "a continuation of nothing": (raw(frames.CONTINUATION, WHOLE, 1, b"\x82"), PROTOCOL),
    "a continuation of another": (raw(H, 0, 3, b"\x82") + raw(frames.CONTINUATION, WHOLE, 5, b"\x82"), PROTOCOL),
    "a ping amid headers": (raw(H, 0, 3, b"\x82") + raw(frames.PING, 0, 0, bytes(8)), PROTOCOL),
    "empty continuations": (raw(H, 0, 3, b"\x82") + raw(frames.CONTINUATION, 0, 3), CALM),
    "endless continuations": (raw(H, 0, 3, b"\x82") + raw(frames.CONTINUATION, 0, 3, bytes(16_000)) * 17, CALM),
    "priority of stream 0": (raw(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "a short priority": (raw(frames.PRIORITY, 0, 1, bytes(4)), SIZE),
    "a reset of stream 0": (raw(frames.RST_STREAM, 0, 0, bytes(4)), PROTOCOL),
    "a reset of a stream to come": (raw(frames.RST_STREAM, 0, 9, bytes(4)), PROTOCOL),
    "a reset of an even stream": (raw(frames.RST_STREAM, 0, 2, bytes(4)), PROTOCOL),
    "a short reset": (raw(frames.RST_STREAM, 0, 1, bytes(3)), SIZE),
    "settings on a stream": (raw(frames.SETTINGS, 0, 1), PROTOCOL),
    "settings cut off": (raw(frames.SETTINGS, 0, 0, bytes(5)), SIZE),
    "an acknowledgement that says more": (raw(frames.SETTINGS, frames.ACK, 0, bytes(6)), SIZE),
    "a push of 2": (frames.settings([(frames.ENABLE_PUSH, 2)]), PROTOCOL),
    "a window of 2^31": (frames.settings([(frames.INITIAL_WINDOW_SIZE, MAX + 1)]), FLOW),
    "frames too small": (frames.settings([(frames.MAX_FRAME_SIZE, 16_383)]), PROTOCOL),
    "frames too large": (frames.settings([(frames.MAX_FRAME_SIZE, 1 << 24)]), PROTOCOL),
    "a push": (raw(frames.PUSH_PROMISE, WHOLE, 1, bytes(5)), PROTOCOL),
    "a ping on a stream": (raw(frames.PING, 0, 1, bytes(8)), PROTOCOL),
    "a short ping": (raw(frames.PING, 0, 0, bytes(7)), SIZE),
    "a goaway on a stream": (raw(frames.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "a short goaway": (raw(frames.GOAWAY, 0, 0, bytes(7)), SIZE),
    "a window that does not grow": (frames.number(frames.WINDOW_UPDATE, 0, 0), PROTOCOL),
    "a connection's window too large": (frames.number(frames.WINDOW_UPDATE, 0, MAX), FLOW),
    "a window of a stream to come": (frames.number(frames.WINDOW_UPDATE, 9, 1), PROTOCOL),
    "a window of an even stream": (frames.number(frames.WINDOW_UPDATE, 2, 1), PROTOCOL),
    "a short window": (raw(frames.WINDOW_UPDATE, 0, 1, bytes(3)), SIZE),
    "a stream's window that its setting makes too large": (
        frames.number(frames.WINDOW_UPDATE, 1, MAX - 65_535) + frames.settings([(frames.INITIAL_WINDOW_SIZE, 65_536)]),
        FLOW,
    ),
    "a frame too large": (b"\0\x40\x01" + bytes(6) + bytes(16_385), SIZE),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_ends_a_connection_says_why_and_leaves_nothing(name: str) -> None:
    data, code = FATAL[name]

    async def scenario() -> None:
        app = App(wait)
        client = Client(app)
        client.send(client.headers(1, POST, end=False))
        await turns()
        client.received()
        client.send(data)
        assert client.goaway() == (1, code)
        client.send(client.headers(11, GET))
        assert client.transport.ended, "what was said still leaves"
        await turns()
        assert (len(app.requests), app.ended) == (1, 1), "what it asked before is ended, what it asks now never begins"
        client.transport.abort()
        await turns()
        assert client.forgotten == 1

    run(scenario)


STREAM = {
    "content shorter than said": ([*POST, ("content-length", "3")], raw(D, END, 1, b"ab"), PROTOCOL),
    "content longer than said": ([*POST, ("content-length", "3")], raw(D, 0, 1, b"abcd"), PROTOCOL),
    "no content where some was said": ([*POST, ("content-length", "3")], raw(D, END, 1), PROTOCOL),
    "a window that does not grow": (POST, frames.number(frames.WINDOW_UPDATE, 1, 0), PROTOCOL),
    "a window too large": (POST, frames.number(frames.WINDOW_UPDATE, 1, MAX), FLOW),
    "headers that do not end the request": (POST, raw(H, WHOLE, 1, b"\0\x01a\x01b"), PROTOCOL),
    "a method among trailers": (POST, raw(H, WHOLE | END, 1, b"\x82"), PROTOCOL),
    "a name in capitals among trailers": (POST, raw(H, WHOLE | END, 1, b"\0\x01A\x01b"), PROTOCOL),
    "more than its window": (POST, raw(D, 0, 1, bytes(16_384)) * 257, FLOW),
}


@pytest.mark.parametrize("name", STREAM)
def test_what_ends_one_stream_disturbs_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    headers, data, code = STREAM[name]
    monkeypatch.setattr(module, "WORK_FRAMES", 10.0)

    async def scenario() -> None:
        app = App(wait)
        client = Client(app)
        client.send(client.headers(1, headers, end=False))
        await turns()
        app.answer = plain(b"ok")
        client.send(data, client.headers(3, GET))
        assert client.resets() == [(1, code)]
        await turns()
        assert client.status(3) == "200"
        assert (app.cancelled, client.transport.ended) == (1, False)

    run(scenario)


@pytest.mark.parametrize("late", [raw(D, 0, 1, b"x"), raw(H, WHOLE | END, 1, b"\0\x01a\x01b")], ids=["data", "headers"])
def test_what_comes_after_the_end_of_a_request_ends_it(late: bytes) -> None:
    async def scenario() -> None:
        client = Client(App(wait))
        client.send(client.headers(1, GET), late)
        assert client.resets() == [(1, ErrorCode.STREAM_CLOSED)]
        client.send(late)
        assert client.goaway() is None, "it may have been on its way"

    run(scenario)


MALFORMED = [
    [*GET, ("connection", "close")],
    [*GET, ("te", "gzip")],
    [*GET, ("Upper", "x")],
    [*GET, ("with space", "x")],
    [*GET, ("", "x")],
    [*GET, ("x", "a\r\nb")],
    [*GET, ("x", "a\0b")],
    [*GET, ("x", " a")],
    [*GET, ("content-length", "1"), ("content-length", "2")],
    [*GET, ("content-length", "-1")],
    [*GET, ("content-length", "9" * 5000)],
    [*GET, (":method", "GET")],
    [*GET, ("x", "y"), (":authority", "late")],
    [*GET, (":protocol", "websocket")],
    GET[1:],
    [*GET[:1], *GET[2:]],
    [GET[0], GET[1], (":path", "")],
    [GET[0], GET[1], (":path", "relative")],
    [GET[0], GET[1], (":path", "/a\r\nb")],
]


@pytest.mark.parametrize("headers", MALFORMED)
def test_headers_that_make_no_request_cost_their_stream(headers: list[tuple[str, str]]) -> None:
    async def scenario() -> None:
        app = App()
        client = Client(app)
        for stream in (1, 3, 5):
            client.send(client.headers(stream, headers))
            assert client.resets() == [(stream, PROTOCOL)]
            await rested(client)
        assert app.requests == []
        client.send(client.headers(7, GET))
        await turns()
        assert client.status(7) == "200"

    run(scenario)


def test_the_authority_is_the_host() -> None:
    async def scenario() -> None:
        app = App()
        client = Client(app)
        client.send(client.headers(1, [*GET, ("host", "other")]))
        await turns()
        assert app.requests[0]["headers"] == [(b"host", b"x")]

    run(scenario)


def test_equal_blocks_mean_what_the_table_says_now() -> None:
    """Two entries may replace the only one of a full table within a block, and lie where it lay."""

    async def scenario() -> None:
        app = App()
        client = Client(app)
        ask = b"\x82\x86\x84\xbe"  # GET, http, /, and the newest entry of the table

        def entry(value: bytes) -> bytes:
            return b"\x40\x01n" + b"\x7f\xb1\x1e" + value * 4016

        for stream in range(1, 80, 4):
            new = b"%c" % (ord("a") + stream % 26)
            client.send(raw(H, WHOLE | END, stream, b"\x82\x86\x84" + entry(b"?") + entry(new)))
            client.send(raw(H, WHOLE | END, stream + 2, ask))
            await turns()
            assert app.requests[-1]["headers"][-1] == (b"n", new * 4016)

    run(scenario)


def test_a_block_that_a_small_table_did_not_keep_may_change_a_larger_one() -> None:
    async def scenario() -> None:
        app = App()
        client = Client(app)
        keep = b"\x82\x86\x84\x40\x01n\x01v"
        client.send(raw(H, WHOLE | END, 1, b"\x20" + keep), raw(H, WHOLE | END, 3, keep))
        client.send(raw(H, WHOLE | END, 5, b"\x3f\xe1\x1f\x82\x86\x84"), raw(H, WHOLE | END, 7, keep))
        client.send(raw(H, WHOLE | END, 9, b"\x82\x86\x84\xbe"))
        await turns()
        assert [scope["headers"] for scope in app.requests[-2:]] == [[(b"n", b"v")]] * 2

    run(scenario)


def test_malformed_requests_that_repeat_leave_nothing() -> None:
    async def scenario() -> None:
        client = Client(App())
        for stream in range(1, 2000, 2):
            client.send(client.headers(stream, GET[1:]))
        gc.collect()
        before = len(gc.get_objects())
        for stream in range(2001, 6000, 2):
            client.send(client.headers(stream, GET[1:]))
            client.transport.written.clear()
        gc.collect()
        assert len(gc.get_objects()) - before < 500

    run(scenario)


# Requests that end in unusual ways


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


async def started(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def broken_later(scope: Scope, receive: Receive, send: Send) -> None:
    await started(scope, receive, send)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise ZeroDivisionError


async def twice(scope: Scope, receive: Receive, send: Send) -> None:
    await started(scope, receive, send)
    await started(scope, receive, send)


async def body_first(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def surprise(scope: Scope, receive: Receive, send: Send) -> None:
    await started(scope, receive, send)
    await send({"type": "http.response.push", "path": "/"})


@pytest.mark.parametrize("answer", [silent, broken, started, twice, body_first, surprise])
def test_an_application_that_fails_before_its_answer_is_a_500(answer: Callable[..., Awaitable[None]]) -> None:
    async def scenario() -> None:
        client = Client(App(answer))
        client.send(client.headers(1, GET))
        await turns()
        assert client.status(1) == "500"

    run(scenario)


def test_an_application_that_fails_amid_its_answer_resets_its_stream() -> None:
    async def scenario() -> None:
        client = Client(App(broken_later))
        client.send(client.headers(1, GET))
        await turns()
        assert client.resets() == [(1, ErrorCode.INTERNAL_ERROR)]

    run(scenario)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_that_have_no_body(method: str, status: int) -> None:
    async def scenario() -> None:
        client = Client(App(plain(b"body", status)))
        client.send(client.headers(1, [(":method", method), *GET[1:]]))
        await turns()
        found = client.received()
        assert b"".join(frame.payload for frame in found if frame.kind == D) == b""
        assert found[-1].flags & END

    run(scenario)


# Windows


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await plain(b"x" * 1000)(scope, receive, send)


def data_of(client: Client) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for frame in client.received():
        if frame.kind == D:
            sizes[frame.stream] = sizes.get(frame.stream, 0) + len(frame.payload)
    return sizes


@pytest.mark.parametrize("size", [0, 3])
def test_a_window_that_shrinks_while_its_stream_waits_for_the_connection(size: int) -> None:
    async def scenario() -> None:
        client = Client(App(plain(b"x" * 65_000)))
        client.send(*[client.headers(stream, GET) for stream in (1, 3)])
        await turns()
        assert data_of(client) == {1: 65_000, 3: 535}
        client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, size)]))
        client.send(frames.number(frames.WINDOW_UPDATE, 0, 100_000))
        assert data_of(client) == {}
        client.send(frames.number(frames.WINDOW_UPDATE, 3, 540))
        assert data_of(client) == {3: 540 + size - 535}
        client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 65_535)]))
        assert sum(data_of(client).values()) == 65_000 - 535 - (540 + size - 535)

    run(scenario)


def test_large_answers_starved_a_watch_on_the_same_connection() -> None:
    """etcd 15402. The window that a client opens goes to all streams in turn, however much some have waiting."""
    begun = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/large":
            await plain(bytes(1 << 20))(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await begun.wait()
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        await wait(scope, receive, send)

    async def scenario() -> None:
        client = Client(App(answer), settings=[(frames.INITIAL_WINDOW_SIZE, MAX)])
        ask = [(name, "/large" if name == ":path" else value) for name, value in GET]
        client.send(*[client.headers(stream, ask) for stream in (1, 3, 5)], client.headers(7, GET))
        await turns()
        begun.set()
        await turns()
        assert 7 not in data_of(client)
        client.send(frames.number(frames.WINDOW_UPDATE, 0, 4 * frames.FRAME_BYTES))
        assert data_of(client)[7] == len(b"event")

    run(scenario)


def test_an_answer_that_a_client_takes_at_once_leaves_others_their_turns() -> None:
    """Nothing makes such an answer wait: neither a window nor the socket."""
    piece = b"x" * (128 << 10)

    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": piece})

    async def scenario() -> None:
        app = App(much)
        client = Client(app, settings=[(frames.INITIAL_WINDOW_SIZE, MAX)])
        client.send(frames.number(frames.WINDOW_UPDATE, 0, MAX - frames.DEFAULT_WINDOW), client.headers(1, GET))
        most = 0
        while not app.ended:
            before = len(client.transport.written)
            await asyncio.sleep(0)
            most = max(most, len(client.transport.written) - before)
        await turns()
        body = b"".join(frame.payload for frame in client.received() if frame.kind == D)
        assert body == piece * 101
        assert most < 1 << 20

    run(scenario)


def test_settings_that_come_by_the_thousand_ask_the_streams_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        client = Client(App(large), settings=[(frames.INITIAL_WINDOW_SIZE, 0)])
        streams = range(1, 2001, 2)
        for stream in streams:
            client.send(client.headers(stream, GET))
        await turns()
        assert data_of(client) == {}
        asked = 0
        queue = client.connection._queue

        def counted(stream: object) -> None:
            nonlocal asked
            asked += 1
            queue(stream)  # type: ignore[arg-type]

        monkeypatch.setattr(client.connection, "_queue", counted)
        client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, n % 2) for n in range(2000)]) * 20)
        assert data_of(client) == dict.fromkeys(streams, 1)
        assert asked < 5 * len(streams)

    run(scenario)


def test_a_client_that_does_not_read_is_not_read_either() -> None:
    async def scenario() -> None:
        client = Client(App(large))
        client.transport.stuck = True
        sent = 0
        ping = frames.frame(frames.PING, 0, 0, bytes(8)) * 1000
        while client.transport.reading and sent < 100:
            client.send(ping)
            client.send(*[client.headers(sent * 200 + n * 2 + 1, GET[1:]) for n in range(100)])
            await rested(client)
            sent += 1
        assert not client.transport.reading
        assert len(client.transport.written) < module.STREAM_WINDOW_BYTES
        client.transport.read()
        await rested(client)
        assert client.transport.reading
        client.send(client.headers(100_001, GET))
        await turns()
        client.transport.read()
        assert any(f.stream == 100_001 for f in client.received())

    run(scenario)


def test_requests_whose_answers_are_not_read_stop_the_reading() -> None:
    async def scenario() -> None:
        app = App(plain(b""))
        client = Client(app)
        client.transport.stuck = True
        stream = 1
        while client.transport.reading and stream < 400_000:
            client.send(client.headers(stream, GET))
            stream += 2
            if stream % 99 == 0:
                await turns()
        await turns()
        assert not client.transport.reading
        assert len(client.transport.written) < 2 << 20

    run(scenario)


def test_one_client_has_a_bounded_part_of_a_turn() -> None:
    async def scenario() -> None:
        app = App(wait)
        client = Client(app)
        client.send(*[client.headers(stream, GET) for stream in range(1, 2001, 2)])
        begun = []
        while len(app.requests) < 1000:
            before = len(app.requests)
            await asyncio.sleep(0)
            begun.append(len(app.requests) - before)
            assert client.transport.reading == (len(client.connection._streams) == 1000)
        assert max(begun) <= module.TURN_WORK
        assert client.transport.reading

    run(scenario)


# The end


def test_what_comes_after_a_goaway_is_neither_begun_nor_taken_for_a_fault() -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def held(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await plain(b"ok")(scope, receive, send)

        app = App(held)
        client = Client(app)
        client.send(client.headers(1, GET))
        await turns()
        client.connection.leave()
        await turns()
        assert client.goaway() == (1, 0)
        client.send(client.headers(3, POST, end=False), raw(D, END, 3, b"x"), frames.number(frames.WINDOW_UPDATE, 3, 9))
        client.send(frames.number(frames.RST_STREAM, 3, 8), client.headers(5, POST, end=False))
        client.send(client.headers(5, [("some", "trailer")]))
        release.set()
        await turns()
        assert client.status(1) == "200"
        assert len(app.requests) == 1
        assert client.transport.ended

    run(scenario)


def test_a_connection_that_leaves_ends_with_its_last_answer() -> None:
    """Also when the application returned long ago, and the client's window held the rest."""

    async def scenario() -> None:
        client = Client(App(large), settings=[(frames.INITIAL_WINDOW_SIZE, 10)])
        client.send(client.headers(1, GET), client.headers(3, GET))
        await turns()
        client.connection.leave()
        await turns()
        assert not client.transport.ended
        client.send(frames.number(frames.WINDOW_UPDATE, 1, 5000), frames.number(frames.RST_STREAM, 3, 8))
        await turns()
        assert data_of(client) == {1: 1000, 3: 10}
        assert client.transport.ended

    run(scenario)


def test_a_client_that_says_goaway_has_its_answers_and_is_told_where_they_end() -> None:
    async def scenario() -> None:
        client = Client(App())
        client.send(client.headers(1, GET), frames.goaway(0, ErrorCode.NO_ERROR), client.headers(3, GET))
        await turns()
        found = client.received()
        assert {frame.stream for frame in found if frame.kind == H} == {1}
        assert [frame.payload[:4] for frame in found if frame.kind == frames.GOAWAY] == [b"\0\0\0\1"]
        assert client.transport.ended

    run(scenario)


def test_a_lost_connection_is_forgotten_when_its_requests_have_ended() -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def tidy(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await wait(scope, receive, send)
            finally:
                await release.wait()

        app = App(tidy)
        client = Client(app)
        client.send(client.headers(1, GET))
        await turns()
        client.transport.abort()
        await turns()
        assert client.forgotten == 0
        release.set()
        await turns()
        assert client.forgotten == 1

    run(scenario)


def test_a_reset_storm_begins_nothing_and_leaves_nothing() -> None:
    async def scenario() -> None:
        app = App(wait)
        client = Client(app)
        for stream in range(1, 20_001, 2):
            client.send(client.headers(stream, POST, end=False) + frames.number(frames.RST_STREAM, stream, 8))
        assert app.requests == []
        for stream in range(20_001, 24_001, 2):
            client.send(client.headers(stream, POST, end=False))
            await turns(1)
            client.send(frames.number(frames.RST_STREAM, stream, 8))
        await turns()
        assert app.ended == len(app.requests) == 2000
        assert not client.connection._streams
        assert not client.connection._running

    run(scenario)


def test_long_headers_of_an_answer_are_not_remembered() -> None:
    async def scenario() -> None:
        async def long(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"echo", scope["raw_path"])]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body"})

        client = Client(App(long))
        before = frames.constant_block.cache_info().currsize
        for stream in range(1, 41, 2):
            client.send(client.headers(stream, [*GET[:2], (":path", f"/{stream}" + "x" * 3000)]))
        await turns()
        assert frames.constant_block.cache_info().currsize - before < 5

    run(scenario)


def test_a_body_that_is_fed_comes_in_the_turn_that_brings_it() -> None:
    async def scenario() -> None:
        taken: list[tuple[bytes, bool]] = []

        async def fed(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"][DIRECT].feed(lambda data, last: taken.append((data, last)))
            await wait(scope, receive, send)

        app = App(fed)
        client = Client(app)
        client.send(client.headers(1, POST, end=False), raw(D, 0x8, 1, b"\x02abc\0\0"))
        await turns()
        client.send(raw(D, 0, 1, b"d"))
        assert taken == [(b"abc", False), (b"d", False)]
        client.send(raw(D, END, 1, b"e"))
        assert taken[2:] == [(b"e", False), (b"", True)]
        client.send(frames.number(frames.RST_STREAM, 1, 8))
        await turns()
        assert app.ended == 1

    run(scenario)


def test_read_bytes_are_given_back_once() -> None:
    async def scenario() -> None:
        client = Client(App(read_all))
        sent = 0
        for stream in range(1, 61, 2):
            client.send(client.headers(stream, POST, end=False))
            for _ in range(255):
                client.send(raw(D, 0, stream, bytes(16_384)))
                sent += 16_384
            if stream % 4 == 1:
                await turns()
            client.send(raw(D, END, stream) if stream % 3 else frames.number(frames.RST_STREAM, stream, 8))
            await turns()
        given = sum(
            int.from_bytes(frame.payload, "big")
            for frame in client.received()
            if frame.kind == frames.WINDOW_UPDATE and frame.stream == 0
        )
        assert given - (module.CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW) + client.connection._owed == sent

    run(scenario)
