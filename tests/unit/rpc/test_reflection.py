"""Server reflection over the services that a member serves to clients."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from raftkv import api
from raftkv.rpc import App, health, reflection
from tests.unit.rpc.hosts import raftkv_host

VERSIONS = ["v1", "v1alpha"]


def member_app() -> App:
    """The methods of a member's client port; none is called, so no member is needed behind them."""
    limits = api.Limits(max_request_bytes=1 << 20, max_txn_ops=128)
    methods = api.services(Mock(), limits, data_dir="") | health.methods(lambda: True)
    methods.update(reflection.methods({path.split("/")[1] for path in methods}))
    return App(methods)


@asynccontextmanager
async def asking(version: str) -> AsyncIterator[Any]:
    async with raftkv_host(member_app()) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )()

        async def ask(**request: str) -> ServerReflectionResponse:
            await call.write(ServerReflectionRequest(host="here", **request))
            answer = await asyncio.wait_for(call.read(), 90)
            assert isinstance(answer, ServerReflectionResponse)
            assert (answer.valid_host, answer.original_request.host) == ("here", "here")
            return answer

        yield ask
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


def files(answer: ServerReflectionResponse) -> list[descriptor_pb2.FileDescriptorProto]:
    found = answer.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(file) for file in found]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_services_of_a_member_are_listed(version: str) -> None:
    async def scenario() -> None:
        async with asking(version) as ask:
            services = [one.name for one in (await ask(list_services="")).list_services_response.service]
            assert services == sorted(set(services))
            assert {"etcdserverpb.KV", "etcdserverpb.Maintenance", "grpc.health.v1.Health"} <= set(services)
            assert "grpc.reflection.v1alpha.ServerReflection" in services

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_listed_service_can_be_looked_up(version: str) -> None:
    async def scenario() -> None:
        async with asking(version) as ask:
            for service in (await ask(list_services="")).list_services_response.service:
                found = files(await ask(file_containing_symbol=service.name))
                assert service.name.rpartition(".")[2] in [one.name for one in found[0].service]

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "question",
    [
        {"file_containing_symbol": "etcdserverpb.KV"},
        {"file_containing_symbol": "etcdserverpb.KV.Range"},
        {"file_containing_symbol": "etcdserverpb.RangeRequest"},
        {"file_containing_symbol": "etcdserverpb.RangeRequest.SortOrder"},
    ],
)
def test_an_answer_has_the_file_first_and_all_that_it_imports(version: str, question: dict[str, str]) -> None:
    async def scenario() -> None:
        async with asking(version) as ask:
            found = files(await ask(**question))
            assert "RangeRequest" in [one.name for one in found[0].message_type]
            names = [file.name for file in found]
            assert len(names) == len(set(names))
            assert {imported for file in found for imported in file.dependency} <= set(names)
            by_name = files(await ask(file_by_filename=names[0]))
            assert by_name == found
            # A client builds its own pool from the answer, from the last file to the first.
            pool = descriptor_pool.DescriptorPool()
            for file in reversed(found):
                pool.Add(file)
            assert pool.FindMessageTypeByName("etcdserverpb.RangeRequest").fields_by_name["range_end"].number == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_there_is_not_found_and_the_stream_goes_on(version: str) -> None:
    async def scenario() -> None:
        async with asking(version) as ask:
            for question in ({"file_by_filename": "no.proto"}, {"file_containing_symbol": "etcdserverpb.No"}):
                assert (await ask(**question)).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
            numbers = await ask(all_extension_numbers_of_type="etcdserverpb.RangeRequest")
            assert numbers.error_response.error_code == grpc.StatusCode.UNIMPLEMENTED.value[0]
            assert (await ask(list_services="")).HasField("list_services_response")

    asyncio.run(scenario())


def test_both_versions_are_one_format() -> None:
    """The v1 file differs from v1alpha in its package alone; one module serves both."""
    assert reflection_pb2.DESCRIPTOR.package == "grpc.reflection.v1alpha"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_that_is_no_message_ends_the_stream(version: str) -> None:
    async def scenario() -> None:
        async with raftkv_host(member_app()) as address, grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")()
            await call.write(b"\xff\xff")
            assert await call.code() == grpc.StatusCode.INTERNAL

    asyncio.run(scenario())
