"""Server reflection (v1alpha and v1, one format), so that generic tools can list and call the services."""

from collections.abc import AsyncIterator, Iterable

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from raftkv.rpc.method import Context, Method
from raftkv.rpc.requests import Incoming
from raftkv.status import Code, StatusError


def methods(services: Iterable[str]) -> dict[str, Method]:
    """Build the service for these full service names; their descriptors come from the default pool."""
    names = sorted({*services, "grpc.reflection.v1alpha.ServerReflection"})

    async def info(requests: Incoming, context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield _answer(_decode(request), names).SerializeToString()

    return {
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Method.bidi(info)
        for version in ("v1alpha", "v1")
    }


def _decode(request: bytes) -> reflection_pb2.ServerReflectionRequest:
    try:
        return reflection_pb2.ServerReflectionRequest.FromString(request)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error


def _answer(
    request: reflection_pb2.ServerReflectionRequest, names: list[str]
) -> reflection_pb2.ServerReflectionResponse:
    response = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
    pool = descriptor_pool.Default()
    try:
        match request.WhichOneof("message_request"):
            case "list_services":
                response.list_services_response.service.extend(
                    reflection_pb2.ServiceResponse(name=name) for name in names
                )
            case "file_by_filename":
                _add_files(response, pool.FindFileByName(request.file_by_filename))
            case "file_containing_symbol":
                _add_files(response, _file_with(request.file_containing_symbol))
            case _:
                response.error_response.error_code = Code.UNIMPLEMENTED
                response.error_response.error_message = "extensions are not used here"
    except KeyError:
        response.error_response.error_code = Code.NOT_FOUND
        response.error_response.error_message = "no such file or symbol"
    return response


def _file_with(symbol: str) -> FileDescriptor:
    """Find the file that defines a message, enum, service, or a method, which the pool does not count as a symbol."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        return pool.FindMethodByName(symbol).containing_service.file


def _add_files(response: reflection_pb2.ServerReflectionResponse, file: FileDescriptor) -> None:
    """Add a file, and after it everything it imports."""
    seen: dict[str, bytes] = {}

    def add(one: FileDescriptor) -> None:
        if one.name not in seen:
            for dependency in one.dependencies:
                add(dependency)
            seen[one.name] = one.serialized_pb

    add(file)
    response.file_descriptor_response.file_descriptor_proto.extend(reversed(seen.values()))
