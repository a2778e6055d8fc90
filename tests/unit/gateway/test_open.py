"""What stays open without being a gRPC call is bounded as well, over real sockets: JSON, pages, and what is refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from h2.settings import SettingCodes

from raftkv.gateway import Gateway
from raftkv.http import HttpServer, Load, listen
from raftkv.web.front import Answer, Front, Page
from tests.unit.gateway.test_app import LIMIT, Service
from tests.unit.rpc.wire import WAIT_SECONDS, Wire, connect
from tests.unit.rpc.wire import Answer as WireAnswer

JSON = "application/json"
PATHS = [("POST", "/v3/watch"), ("POST", "/v3/kv/range"), ("POST", "/v3/nothing"), ("PUT", "/v3/kv/range")]
PATHS += [("POST", "/nothing"), ("POST", "/page"), ("PUT", "/page"), ("OPTIONS", "/page")]
"""Requests of every kind that wait for the end of their bodies."""
RANGE = b'{"key":"YQ=="}'


@contextlib.asynccontextmanager
async def serving(max_streams: int, **settings: int) -> AsyncIterator[tuple[Load, str, Wire]]:
    """A server with everything a client port has; what stays open on it, its address, and a connection."""
    load = Load(max_streams=max_streams)
    _, app = Service().gateway(load)
    gateway = Gateway(app, max_receive_bytes=LIMIT, load=load)

    async def page(query: object, rest: str) -> Answer:
        return Answer(200, b"%d open" % load.streams)

    app.http = Front({"/page": Page(page)}, gateway=gateway, origins=["*"])
    server = HttpServer(app, listen("127.0.0.1", 0), grace_seconds=1.0, load=load)
    await server.start()
    try:
        async with connect(server.address, {SettingCodes[name]: value for name, value in settings.items()}) as wire:
            yield load, server.address, wire
        await until(lambda: not load.connections)
        assert load.streams == load.bytes == 0
    finally:
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def begin(wire: Wire, method: str, path: str) -> int:
    """A request whose body does not end."""
    return await wire.open(path, method=method, content_type=JSON, te=None)


async def whole(wire: Wire, path: str, body: bytes) -> WireAnswer:
    """A request that arrives in one piece."""
    stream = wire.h2.get_next_available_stream_id()
    wire.answers[stream] = WireAnswer()
    headers = {":method": "POST", ":path": path, ":scheme": "http", ":authority": "x", "content-type": JSON}
    wire.h2.send_headers(stream, list(headers.items()))
    wire.h2.send_data(stream, body, end_stream=True)
    await wire.flush()
    return await wire.end_of(stream)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 100))


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_requests_whose_bodies_do_not_end_are_bounded(method: str, path: str) -> None:
    async def scenario() -> None:
        # A refusal waits for no window either.
        async with serving(10, INITIAL_WINDOW_SIZE=0) as (load, _, wire):
            streams = [await begin(wire, method, path) for _ in range(30)]
            await wire.until(lambda: sum(wire.answers[stream].ended for stream in streams) >= 20)
            answers = [wire.answers[stream] for stream in streams]
            assert [answer.headers.get(":status") for answer in answers] == [None] * 10 + ["429"] * 20
            assert (load.streams, load.refused_calls) == (10, 20)
            await wire.reset(streams[0])
            await until(lambda: load.streams == 9)
            await begin(wire, method, path)
            await until(lambda: load.streams == 10)

    run(scenario)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_requests_whose_bodies_do_not_end_are_ended(method: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("raftkv.rpc.held", "raftkv.gateway.app"):
        monkeypatch.setattr(f"{module}.BODY_SECONDS", 0.2)

    async def scenario() -> None:
        async with serving(10) as (load, _, wire):
            stream = await begin(wire, method, path)
            # What trickles in is no progress.
            await wire.data(stream, b" ")
            answer = await wire.end_of(stream)
            assert answer.headers[":status"] == {
                ("POST", "/v3/watch"): "504",
                ("POST", "/v3/kv/range"): "504",
                ("POST", "/v3/nothing"): "404",
                ("POST", "/nothing"): "404",
                ("OPTIONS", "/page"): "200",
            }.get((method, path), "405")
            await until(lambda: load.streams == 0)

    run(scenario)


def test_a_stream_through_json_counts_once_and_what_is_here_whole_is_served() -> None:
    async def scenario() -> None:
        async with serving(2) as (load, _, wire):
            streams = [await begin(wire, "POST", "/v3/watch") for _ in range(2)]
            for stream in streams:
                await wire.data(stream, b'{"create_request":{}}')
            await wire.until(lambda: all(wire.answers[stream].body for stream in streams))
            assert load.streams == 2
            assert (await whole(wire, "/v3/kv/range", RANGE)).headers[":status"] == "200"
            assert (await whole(wire, "/page", b"")).headers[":status"] == "405"
            for refused in (
                await whole(wire, "/v3/watch", b'{"create_request":{}}'),
                await wire.end_of(await begin(wire, "POST", "/v3/watch")),
            ):
                assert refused.headers[":status"] == "429"
            assert load.streams == 2
            for stream in streams:
                await wire.reset(stream)

    run(scenario)


@pytest.mark.parametrize("apart", [False, True])
def test_a_connection_with_one_request_at_a_time_is_served_but_not_its_watch(apart: bool) -> None:
    """Also when the body comes apart, as many clients of HTTP/1.1 send it."""

    async def scenario() -> None:
        async with serving(1) as (load, address, wire):
            await begin(wire, "POST", "/v3/watch")
            await until(lambda: load.streams == 1)
            for path, body, status in (
                ("/v3/kv/range", RANGE, b"200"),
                ("/v3/watch", b'{"create_request":{}}', b"429"),
            ):
                host, _, port = address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
                writer.write(head if apart else head + body)
                if apart:
                    await until(lambda: load.streams == 2)
                    writer.write(body)
                async with asyncio.timeout(WAIT_SECONDS):
                    line = await reader.readline()
                assert line.split()[1] == status
                writer.close()
                await writer.wait_closed()
                await until(lambda: load.streams == 1)

    run(scenario)


def test_a_page_that_is_asked_for_does_not_count_itself() -> None:
    async def scenario() -> None:
        async with serving(1) as (_, address, wire):
            stream = await wire.open("/page", method="GET", content_type=None, te=None, end=True)
            assert (await wire.end_of(stream)).body == b"0 open"
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await reader.read()).endswith(b"0 open")
            writer.close()

    run(scenario)
