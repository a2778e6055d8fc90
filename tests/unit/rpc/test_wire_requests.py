"""Requests that break the rules of gRPC over HTTP/2, and what they are answered."""

import asyncio
import gzip

import pytest
from h2.errors import ErrorCodes

from raftkv.status import Code
from tests.unit.rpc.hosts import wired
from tests.unit.rpc.service import LIMIT
from tests.unit.rpc.wire import Answer, Headers, message

ECHO = "/test.Service/Echo"
TALK = "/test.Service/Talk"
TOTAL = "/test.Service/Total"
GZIP = [("grpc-encoding", "gzip")]
BOMB = gzip.compress(b"\0" * (20 * LIMIT))
TOO_LARGE = f"grpc: received message larger than max (4294967295 vs. {LIMIT})"
INFLATED = f"grpc: received message after decompression larger than max ({LIMIT + 1} vs. {LIMIT})"


def ask(host: str, path: str, body: bytes, extra: Headers | None = None, **replace: str | None) -> Answer:
    """Make one call; whatever came back, the connection must still serve the next one."""

    async def scenario() -> Answer:
        async with wired(host) as (_, wire):
            answer = await wire.call(path, body, extra, **replace)
            assert (await wire.call(ECHO, message(b"next"))).messages == [b"next"]
            return answer

    return asyncio.run(scenario())


def grpc_status(answer: Answer) -> tuple[int, str]:
    """The status, which must have come as gRPC sends every one: HTTP 200, and trailers that end the stream.

    A status alone may be one block, "trailers-only"; servers that know ASGI as it is written send two.
    """
    assert answer.headers[":status"] == "200"
    assert answer.headers["content-type"] == "application/grpc"
    blocks = 1 if "grpc-status" in answer.headers else 2
    assert (answer.header_blocks, answer.ended, answer.reset) == (blocks, True, None)
    return answer.status


@pytest.mark.parametrize("path", [ECHO, TALK, TOTAL])
@pytest.mark.parametrize(
    ("body", "extra", "code", "text"),
    [
        (message(b"x", 2), None, Code.INTERNAL, "grpc: received unexpected payload format 2"),
        (message(b"x", 1), None, Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        (message(b"x", 1), GZIP, Code.INTERNAL, "grpc: failed to decompress the message"),
        (message(b"xyz")[:-1], None, Code.INTERNAL, "grpc: the stream ended inside a message"),
        (b"\0\0", None, Code.INTERNAL, "grpc: the stream ended inside a message"),
        (b"\0\xff\xff\xff\xff", None, Code.RESOURCE_EXHAUSTED, TOO_LARGE),
        (message(BOMB, 1), GZIP, Code.RESOURCE_EXHAUSTED, INFLATED),
    ],
    ids=["flag", "unannounced", "no gzip", "truncated", "prefix only", "oversized", "bomb"],
)
def test_a_broken_frame_ends_its_own_call_only(
    host: str, path: str, body: bytes, extra: Headers | None, code: Code, text: str
) -> None:
    found, said = grpc_status(ask(host, path, body, extra))
    assert (found, said.startswith(text)) == (code, True), said


def test_messages_before_the_broken_one_are_answered(host: str) -> None:
    answer = ask(host, TALK, message(b"good") + b"\0\0")
    assert (answer.messages, answer.status[0]) == ([b"good!"], Code.INTERNAL)


@pytest.mark.parametrize("body", [b"", message(b"a") * 2], ids=["none", "two"])
def test_a_unary_call_has_exactly_one_request_message(host: str, body: bytes) -> None:
    code, text = grpc_status(ask(host, ECHO, body))
    assert (code, "one request message" in text) == (Code.INTERNAL, True), text


def test_a_server_streaming_call_needs_a_request_message(host: str) -> None:
    assert grpc_status(ask(host, "/test.Service/Count", b""))[0] == Code.INTERNAL


def test_a_message_may_come_byte_by_byte(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (_, wire):
            for path, answer in ((ECHO, b"abc"), (TOTAL, b"3")):
                stream = await wire.open(path)
                for byte in message(b"abc"):
                    await wire.data(stream, bytes([byte]))
                await wire.data(stream, b"", end=True)
                assert (await wire.end_of(stream)).messages == [answer]

    asyncio.run(scenario())


def test_trailers_may_end_a_request(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (_, wire):
            stream = await wire.open(ECHO)
            await wire.data(stream, message(b"hi"))
            wire.h2.send_headers(stream, [("some", "trailer")], end_stream=True)
            await wire.flush()
            assert (await wire.end_of(stream)).messages == [b"hi"]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;charset=x", "Application/GRPC"])
def test_content_types_of_grpc(host: str, kind: str) -> None:
    assert ask(host, ECHO, message(b"hi"), content_type=kind).messages == [b"hi"]


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/grpc-web", "application/grpcx", None])
def test_another_content_type_is_http_415(host: str, kind: str | None) -> None:
    answer = ask(host, ECHO, message(b"hi"), content_type=kind)
    assert (answer.headers[":status"], answer.ended, answer.reset) == ("415", True, None)


def test_a_method_other_than_post_is_http_405(host: str) -> None:
    for method in ("GET", "PUT"):
        answer = ask(host, ECHO, message(b"hi"), method=method)
        assert (answer.headers[":status"], answer.headers["allow"]) == ("405", "POST")


def test_a_request_without_te_is_told_so(host: str) -> None:
    if host == "hypercorn":
        pytest.skip("hypercorn 0.18 promises trailers to such a request and then leaves them out")
    answer = ask(host, ECHO, message(b"hi"), te=None)
    assert answer.headers[":status"] == "400"
    assert b"te: trailers" in answer.body


@pytest.mark.parametrize("encoding", ["snappy", "deflate", "GZIP"])
def test_an_unknown_compression_is_unimplemented_and_the_known_ones_are_named(host: str, encoding: str) -> None:
    answer = ask(host, ECHO, message(b"hi", 1), [("grpc-encoding", encoding)])
    text = f'grpc: Decompressor is not installed for grpc-encoding "{encoding}"'
    assert grpc_status(answer) == (Code.UNIMPLEMENTED, text)
    assert answer.headers["grpc-accept-encoding"] == "identity,gzip"


def test_an_answer_is_never_compressed(host: str) -> None:
    packed = gzip.compress(b"a" * 5000)
    answer = ask(host, ECHO, message(packed, 1), [*GZIP, ("grpc-accept-encoding", "gzip")])
    assert answer.messages == [b"a" * 5000]
    assert "grpc-encoding" not in answer.headers


@pytest.mark.parametrize("timeout", ["", "1", "S", "1x", "-1S", "1.5S", "999999999S", "S1"])
def test_a_malformed_timeout_is_refused(host: str, timeout: str) -> None:
    code, text = grpc_status(ask(host, ECHO, message(b"hi"), [("grpc-timeout", timeout)]))
    assert (code, "grpc-timeout" in text) == (Code.INTERNAL, True)


def test_a_call_whose_time_is_over_never_reaches_its_handler(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            for path in (ECHO, TALK):
                answer = await wire.call(path, message(b"hi"), [("grpc-timeout", "0S")])
                assert grpc_status(answer)[0] == Code.DEADLINE_EXCEEDED
            assert service.calls == 0

    asyncio.run(scenario())


def test_a_timeout_counts_from_the_headers_and_in_its_unit(host: str) -> None:
    async def scenario() -> None:
        async with wired(host) as (service, wire):
            for timeout, seconds in (("200S", 200), ("3M", 180), ("1H", 3600), ("99999999H", 99999999 * 3600)):
                loop = asyncio.get_running_loop()
                earliest = loop.time() + seconds
                assert (await wire.call(ECHO, message(b"hi"), [("grpc-timeout", timeout)])).status[0] == 0
                assert service.context is not None
                assert service.context.deadline is not None
                assert earliest <= service.context.deadline <= loop.time() + seconds

    asyncio.run(scenario())


def test_a_status_text_travels_percent_encoded(host: str) -> None:
    answer = ask(host, ECHO, message(b"refuse"))
    assert answer.trailers["grpc-message"] == "nothing: 100 %25 n%C3%B6%0A"
    assert grpc_status(answer) == (Code.NOT_FOUND, "nothing: 100 % nö\n")


AUTHORITIES = ["/run/raftkv.sock", "#initially=[http://127.0.0.1:2379]", "etcd-endpoints://0xc000/m1:2379", "a,b", ""]


@pytest.mark.parametrize("authority", ["[::1]:2379", "m1.example", "m1.example:2379", "localhost:0", "%2Frun%2Fx.sock"])
def test_any_authority_of_a_uri_is_served(host: str, authority: str) -> None:
    assert ask(host, ECHO, message(b"hi"), authority=authority).messages == [b"hi"]


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_an_authority_that_no_uri_has_costs_its_own_call_at_most(host: str, authority: str) -> None:
    """h2corn 2.0 refuses such a request, and no setting allows it; all others on the connection are served."""
    answer = ask(host, ECHO, message(b"hi"), authority=authority)
    if host == "h2corn":
        assert answer.reset == ErrorCodes.PROTOCOL_ERROR
    else:
        assert answer.messages == [b"hi"]


@pytest.mark.parametrize("extra", [[(f"x-{n}", "y") for n in range(500)], [("x-big", "y" * 60_000)]])
def test_many_and_large_headers_pass(host: str, extra: Headers) -> None:
    assert ask(host, ECHO, message(b"hi"), extra).messages == [b"hi"]
