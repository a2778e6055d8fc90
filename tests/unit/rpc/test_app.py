"""gRPC over ASGI, spoken to by real grpcio clients, on every host."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.unit.rpc.hosts import HOSTS
from tests.unit.rpc.service import LIMIT, Service


@contextlib.asynccontextmanager
async def serving(host: str) -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
    service = Service()
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with HOSTS[host](service.app()) as address, grpc.aio.insecure_channel(address, unlimited) as channel:
        await asyncio.wait_for(channel.channel_ready(), 90)
        yield service, channel


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


def test_unary_calls(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            echo = channel.unary_unary("/test.Service/Echo")
            assert await echo(b"hello") == b"hello"
            assert await echo(b"") == b""
            assert await echo(b"x" * LIMIT) == b"x" * LIMIT
            assert await echo(b"y" * 1000, compression=grpc.Compression.Gzip) == b"y" * 1000
            assert await asyncio.gather(*[echo(b"%d" % n) for n in range(200)]) == [b"%d" % n for n in range(200)]

    asyncio.run(scenario())


def test_a_handler_may_promise_its_answer(host: str) -> None:
    """And needs no task then, where the host hands requests over at once."""

    async def scenario() -> None:
        async with serving(host) as (service, channel):
            promise = channel.unary_unary("/test.Service/Promise")
            for request in (b"now", b"soon", b"made"):
                assert await promise(request) == request
                assert await promise(request, timeout=1000) == request
            assert await refusal(promise(b"raise")) == (grpc.StatusCode.NOT_FOUND, "at once")
            assert await refusal(promise(b"refuse")) == (grpc.StatusCode.OUT_OF_RANGE, "later")
            for bug in (b"bug", b"oops"):
                assert (await refusal(promise(bug)))[0] == grpc.StatusCode.INTERNAL
            assert set(service.tasks) == {host != "raftkv"}

    asyncio.run(scenario())


def test_a_handler_knows_its_caller(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (service, channel):
            metadata = (("plain", "text"), ("twice", "1"), ("twice", "2"), ("some-bin", b"\x00\xff"), ("none-bin", b""))
            await channel.unary_unary("/test.Service/Echo")(b"", metadata=metadata, timeout=1000)
            assert service.context is not None
            seen = service.context.metadata
            assert {name: seen[name] for name in ("plain", "twice", "some-bin", "none-bin")} == {
                "plain": "text",
                "twice": "2",
                "some-bin": b"\x00\xff",
                "none-bin": b"",
            }
            assert not [name for name in seen if name.startswith(("grpc-", ":"))]
            assert service.context.peer.startswith("127.0.0.1:")
            assert service.context.deadline is not None
            # grpcio rounds long timeouts up to two or three digits: 1000 s may travel as 1010S.
            assert 900 < service.context.deadline - asyncio.get_running_loop().time() <= 1010

    asyncio.run(scenario())


def test_errors_reach_the_client_byte_for_byte(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            echo = channel.unary_unary("/test.Service/Echo")
            assert await refusal(echo(b"refuse")) == (grpc.StatusCode.NOT_FOUND, "nothing: 100 % nö\n")
            assert await refusal(echo(b"large")) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"grpc: trying to send message larger than max ({LIMIT + 1} vs. {LIMIT})",
            )

    asyncio.run(scenario())


@pytest.mark.parametrize("request_", [b"bug", b"late"])
@pytest.mark.parametrize("timeout", [None, 1000])
def test_a_bug_is_internal_and_leaves_a_traceback(
    host: str, request_: bytes, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            code, text = await refusal(channel.unary_unary("/test.Service/Echo")(request_, timeout=timeout))
            assert (code, text.partition(":")[0]) == (grpc.StatusCode.INTERNAL, "internal error")

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    (record,) = [record for record in caplog.records if record.name == "raftkv.rpc.answers"]
    assert record.exc_info
    assert "Service.echo" in record.getMessage()


def test_a_method_that_is_not_there(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            unknown = channel.unary_unary("/test.Service/Nope")
            text = "unknown method Nope for service test.Service"
            assert await refusal(unknown(b"")) == (grpc.StatusCode.UNIMPLEMENTED, text)
            stranger = channel.unary_unary("/other.Service/Echo")
            assert await refusal(stranger(b"")) == (grpc.StatusCode.UNIMPLEMENTED, "unknown service other.Service")

    asyncio.run(scenario())


def test_a_request_that_is_refused_before_it_was_read(host: str) -> None:
    if host == "hypercorn":
        pytest.skip("hypercorn 0.18 breaks the connection when request data comes after the answer")

    async def scenario() -> None:
        async with serving(host) as (_, channel):
            for path in ("Echo", "Talk"):
                call = channel.stream_unary(f"/test.Service/{path}")(iter([b"x" * (LIMIT + 1)]))
                assert await refusal(call) == (
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"grpc: received message larger than max ({LIMIT + 1} vs. {LIMIT})",
                )

    asyncio.run(scenario())


def test_a_deadline_ends_a_call_of_every_kind(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (service, channel):
            for path in ("Echo", "Promise"):
                code, _ = await refusal(channel.unary_unary(f"/test.Service/{path}")(b"wait", timeout=1.0))
                assert code == grpc.StatusCode.DEADLINE_EXCEEDED
                await asyncio.wait_for(service.cancelled.wait(), 90)
                service.cancelled.clear()
            for path in ("Forever", "Talk"):
                service.cancelled.clear()
                call = channel.stream_stream(f"/test.Service/{path}")(timeout=1.0)
                await call.write(b"1")
                assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                await asyncio.wait_for(service.cancelled.wait(), 90)

    asyncio.run(scenario())


def test_streams(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            count = channel.unary_stream("/test.Service/Count")
            assert [message async for message in count(b"2")] == [b"0", b"1"]
            assert [message async for message in count(b"0")] == []
            assert len([message async for message in count(b"2000")]) == 2000
            total = channel.stream_unary("/test.Service/Total")
            assert await total(iter([b"x" * 1000] * 300)) == b"300000"
            assert await total(iter([])) == b"0"
            assert await total(iter([b"z" * 5000] * 20), compression=grpc.Compression.Gzip) == b"100000"
            talk = channel.stream_stream("/test.Service/Talk")()
            for number in range(3):
                await talk.write(b"%d" % number)
                assert await talk.read() == b"%d!" % number
            await talk.done_writing()
            assert await talk.read() == b"bye", "a client that has finished is still answered"
            assert await talk.read() is grpc.aio.EOF
            assert await talk.code() == grpc.StatusCode.OK

    asyncio.run(scenario())


def test_a_stream_that_fails_midway_keeps_what_it_sent(host: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(host) as (_, channel):
            for number, code in ((b"3", grpc.StatusCode.OUT_OF_RANGE), (b"4", grpc.StatusCode.INTERNAL)):
                call = channel.unary_stream("/test.Service/Count")(number)
                assert [await call.read() for _ in range(int(number))] == [b"%d" % n for n in range(int(number))]
                assert (await refusal(call.read()))[0] == code
            talk = channel.stream_stream("/test.Service/Talk")()
            await talk.write(b"large")
            assert await talk.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_a_client_that_goes_away_ends_the_handler(host: str) -> None:
    async def scenario() -> None:
        for path in ("Talk", "Forever"):
            async with serving(host) as (service, channel):
                call = channel.stream_stream(f"/test.Service/{path}")()
                await call.write(b"1")
                await call.read()
                call.cancel()
                await asyncio.wait_for(service.cancelled.wait(), 90)

    asyncio.run(scenario())


def test_thousands_of_streams_at_once(host: str) -> None:
    # hypercorn takes a thousand at most, and slowly.
    streams = 200 if host == "hypercorn" else 3000

    async def scenario() -> None:
        async with serving(host) as (_, channel):
            calls = [channel.stream_stream("/test.Service/Talk")() for _ in range(streams)]
            for call in calls:
                await call.write(b"x")
            assert [await call.read() for call in calls] == [b"x!"] * streams
            for call in calls:
                await call.done_writing()
            assert [await call.read() for call in calls] == [b"bye"] * streams
            assert [await call.code() for call in calls] == [grpc.StatusCode.OK] * streams

    asyncio.run(scenario())


def test_a_handler_may_take_messages_the_moment_they_come(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as (service, channel):
            lengths = channel.stream_unary("/test.Service/Lengths")
            assert await lengths(iter([b"x" * size for size in (3, 0, 70_000, 1)])) == b"3 0 70000 1"
            assert await lengths(iter([])) == b""
            assert (await refusal(lengths(iter([b"fine", b"refuse", b"more"]))))[0] is grpc.StatusCode.NOT_FOUND
            late = channel.stream_unary("/test.Service/Lengths")()
            for _ in range(100):
                await late.write(b"before it begins" if not service.calls else b"after")
            await late.done_writing()
            assert (await late).count(b" ") == 99

    asyncio.run(scenario())
