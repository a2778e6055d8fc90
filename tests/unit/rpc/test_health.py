"""The standard health service, asked by a real client with the standard stubs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from raftkv.rpc import App, health
from tests.unit.rpc.hosts import raftkv_host

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
WAIT_SECONDS = 90


class State:
    serving = True


@contextlib.asynccontextmanager
async def channel() -> AsyncIterator[tuple[State, grpc.aio.Channel]]:
    state = State()
    app = App(health.methods(lambda: state.serving))
    async with raftkv_host(app) as address, grpc.aio.insecure_channel(address) as opened:
        yield state, opened


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def test_check_tells_the_state_of_the_server_and_knows_no_other_service() -> None:
    async def scenario() -> None:
        async with channel() as (state, opened):
            stub = health_pb2_grpc.HealthStub(opened)
            assert (await stub.Check(request())).status == SERVING
            state.serving = False
            assert (await stub.Check(request())).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(request("etcdserverpb.KV"))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


def test_list_has_the_server_alone() -> None:
    async def scenario() -> None:
        async with channel() as (state, opened):
            stub = health_pb2_grpc.HealthStub(opened)
            for serving, status in ((True, SERVING), (False, NOT_SERVING)):
                state.serving = serving
                answer = await stub.List(health_pb2.HealthListRequest())
                assert {name: one.status for name, one in answer.statuses.items()} == {"": status}

    asyncio.run(scenario())


def test_watch_tells_each_change_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_SECONDS", 0.01)

    async def scenario() -> None:
        async with channel() as (state, opened):
            watch = health_pb2_grpc.HealthStub(opened).Watch(request())
            for serving, status in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
                state.serving = serving
                assert (await asyncio.wait_for(watch.read(), WAIT_SECONDS)).status == status
            watch.cancel()

    asyncio.run(scenario())


def test_watch_of_an_unknown_service_waits_for_it() -> None:
    async def scenario() -> None:
        async with channel() as (_, opened):
            watch = health_pb2_grpc.HealthStub(opened).Watch(request("nope"))
            assert (await asyncio.wait_for(watch.read(), WAIT_SECONDS)).status == UNKNOWN
            assert not watch.done(), "the service may yet come"
            watch.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_request_that_is_no_message_is_refused(method: str) -> None:
    async def scenario() -> None:
        async with channel() as (_, opened):
            call = opened.unary_stream(f"/grpc.health.v1.Health/{method}")(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError, match="unmarshalling") as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.INTERNAL

    asyncio.run(scenario())
