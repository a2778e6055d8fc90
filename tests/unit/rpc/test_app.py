"""gRPC over ASGI, spoken to by real grpcio clients, on h2corn and on hypercorn."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from raftkv.rpc import App, Context, Method
from raftkv.rpc.framing import Deframer, frame, parse_timeout, percent_encode
from raftkv.rpc.server import HttpServer, listen
from raftkv.status import Code, StatusError

LIMIT = 1 << 20


class Service:
    """Handlers of every kind, and what they saw."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, str | bytes] = {}

    async def echo(self, request: bytes, context: Context) -> bytes | list[bytes]:
        self.metadata = dict(context.metadata)
        if request == b"refuse":
            raise StatusError(Code.NOT_FOUND, "nothing: 100 % nö\n")
        if request == b"bug":
            raise ZeroDivisionError
        if request == b"slow":
            await asyncio.sleep(60)
        return [request[:1], request[1:]]

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number
        if request == b"3":
            raise StatusError(Code.OUT_OF_RANGE, "no more")

    async def total(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"%d" % sum([len(request) async for request in requests])

    async def talk(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request + b"!"
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def forever(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            yield b"begin"
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()

    def app(self) -> App:
        methods = {
            "/test.Service/Echo": Method.unary(self.echo),
            "/test.Service/Count": Method.server_stream(self.count),
            "/test.Service/Total": Method.client_stream(self.total),
            "/test.Service/Talk": Method.bidi(self.talk),
            "/test.Service/Forever": Method.server_stream(self.forever),
        }
        return App(methods, max_receive_bytes=LIMIT, max_send_bytes=LIMIT)


@contextlib.asynccontextmanager
async def h2corn(app: App) -> AsyncIterator[str]:
    server = HttpServer(app, listen("127.0.0.1", 0), max_concurrent_streams=1 << 31)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def hypercorn(app: App) -> AsyncIterator[str]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = listen("127.0.0.1", 0)
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.graceful_timeout = 0.2
    stop = asyncio.Event()
    task = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    host, port = listener.getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        stop.set()
        await task
        listener.detach()


HOSTS = {"h2corn": h2corn, "hypercorn": hypercorn}


@pytest.fixture(params=sorted(HOSTS))
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def serving(host: str) -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
    service = Service()
    async with HOSTS[host](service.app()) as address, grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        yield service, channel


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


def test_unary_calls(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (service, channel):
            echo = channel.unary_unary("/test.Service/Echo")
            metadata = (("plain", "text"), ("some-bin", b"\x00\xff"))
            assert await echo(b"hello", metadata=metadata) == b"hello"
            assert (service.metadata["plain"], service.metadata["some-bin"]) == ("text", b"\x00\xff")
            assert await echo(b"") == b""
            assert await echo(b"x" * LIMIT) == b"x" * LIMIT
            assert await echo(b"y" * 1000, compression=grpc.Compression.Gzip) == b"y" * 1000

    asyncio.run(scenario())


def test_errors_reach_the_client_byte_for_byte(host: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            echo = channel.unary_unary("/test.Service/Echo")
            assert await refusal(echo(b"refuse")) == (grpc.StatusCode.NOT_FOUND, "nothing: 100 % nö\n")
            with caplog.at_level(logging.ERROR):
                code, _ = await refusal(echo(b"bug"))
            assert code == grpc.StatusCode.INTERNAL

    asyncio.run(scenario())
    assert any(record.exc_info for record in caplog.records), "a bug leaves a traceback in the log"


def test_a_request_that_is_refused_before_it_was_read(host: str) -> None:
    if host == "hypercorn":
        pytest.skip("hypercorn 0.18 breaks the connection when request data comes after the answer")

    async def scenario() -> None:
        async with serving(host) as (_, channel):
            unknown = channel.unary_unary("/test.Service/Nope")
            assert await refusal(unknown(b"")) == (
                grpc.StatusCode.UNIMPLEMENTED,
                "unknown method Nope for service test.Service",
            )
            stranger = channel.unary_unary("/other.Service/Echo")
            assert await refusal(stranger(b"")) == (grpc.StatusCode.UNIMPLEMENTED, "unknown service other.Service")

    asyncio.run(scenario())


def test_a_message_that_is_too_large_is_refused_before_it_is_read() -> None:
    """On h2corn alone: hypercorn drops the connection when an answer ends before the request does."""

    async def scenario() -> None:
        async with serving("h2corn") as (_, channel):
            echo = channel.unary_unary("/test.Service/Echo")
            code, text = await refusal(echo(b"x" * (LIMIT + 1)))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert text == f"grpc: received message larger than max ({LIMIT + 1} vs. {LIMIT})"

    asyncio.run(scenario())


def test_a_deadline_ends_a_call(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            code, _ = await refusal(channel.unary_unary("/test.Service/Echo")(b"slow", timeout=0.3))
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(scenario())


def test_streams(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            count = channel.unary_stream("/test.Service/Count")
            assert [message async for message in count(b"2")] == [b"0", b"1"]
            seen = []
            call = count(b"3")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                seen += [message async for message in call]
            assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
            total = channel.stream_unary("/test.Service/Total")
            assert await total(iter([b"x" * 1000] * 300)) == b"300000"
            talk = channel.stream_stream("/test.Service/Talk")()
            for number in range(3):
                await talk.write(b"%d" % number)
                assert await talk.read() == b"%d!" % number
            await talk.done_writing()
            assert await talk.read() is grpc.aio.EOF
            assert await talk.code() == grpc.StatusCode.OK

    asyncio.run(scenario())


def test_a_client_that_goes_away_ends_the_handler(host: str) -> None:
    async def scenario() -> None:
        for path in ("Talk", "Forever"):
            async with serving(host) as (service, channel):
                call = channel.stream_stream(f"/test.Service/{path}")()
                await call.write(b"1")
                await call.read()
                call.cancel()
                await asyncio.wait_for(service.cancelled.wait(), 10)

    asyncio.run(scenario())


def test_a_thousand_streams_at_once() -> None:
    async def scenario() -> None:
        async with serving("h2corn") as (_, channel):
            calls = [channel.stream_stream("/test.Service/Talk")() for _ in range(1000)]
            for call in calls:
                await call.write(b"x")
            assert [await call.read() for call in calls] == [b"x!"] * 1000
            for call in calls:
                await call.done_writing()
            assert [await call.code() for call in calls] == [grpc.StatusCode.OK] * 1000

    asyncio.run(scenario())


def test_messages_are_cut_wherever_the_bytes_break() -> None:
    body = frame(b"one", 9) + frame([b"t", b"wo"], 9) + frame(b"", 9)
    for step in range(1, len(body) + 1):
        deframer = Deframer(b"", 100)
        messages: list[bytes] = []
        for start in range(0, len(body), step):
            messages += deframer.feed(body[start : start + step])
        deframer.finish()
        assert messages == [b"one", b"two", b""]


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        (b"", b"\x00\x00\x00\x00\x05ab", Code.INTERNAL),
        (b"", b"\x01\x00\x00\x00\x01a", Code.INTERNAL),
        (b"gzip", b"\x01\x00\x00\x00\x01a", Code.INTERNAL),
        (b"", b"\x02\x00\x00\x00\x01a", Code.INTERNAL),
        (b"", b"\x00\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
    ],
)
def test_broken_frames_are_refused(encoding: bytes, body: bytes, code: Code) -> None:
    deframer = Deframer(encoding, 100)

    def read() -> None:
        deframer.feed(body)
        deframer.finish()

    with pytest.raises(StatusError) as caught:
        read()
    assert caught.value.code is code


def test_a_small_message_may_not_inflate_without_bound() -> None:
    import gzip

    bomb = gzip.compress(b"\0" * 1_000_000)
    with pytest.raises(StatusError, match="larger than max"):
        Deframer(b"gzip", 10_000).feed(b"\x01" + len(bomb).to_bytes(4, "big") + bomb)


def test_timeouts_and_messages_are_written_as_grpc_writes_them() -> None:
    assert [parse_timeout(text) for text in (b"5S", b"100m", b"2M", b"1H", b"7u")] == [5.0, 0.1, 120.0, 3600.0, 7e-6]
    for bad in (b"", b"S", b"5", b"-5S", b"123456789S", b"5x"):
        with pytest.raises(StatusError):
            parse_timeout(bad)
    assert percent_encode("50 % ä\n") == b"50 %25 %C3%A4%0A"
